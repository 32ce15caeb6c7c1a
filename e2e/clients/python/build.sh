# Makes the virtual environment $1. Only ready-made packages: nothing is compiled here.
set -eu
python3 -m venv "$1"
"$1/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --only-binary=:all: --requirement requirements.txt
