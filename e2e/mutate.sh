#!/bin/sh
# Breaks durability on purpose, one patch at a time, in a copy of the last commit, and says whether the tests named in
# the patch's first line (`test: <arguments of cargo test>`) notice. Arguments: parts of names of the patches to try.
# A file named by FERRETCD_DONE keeps the names of those that were caught, which are left out the next time.
# The list with what each one is about: docs/dev/mutations.md.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
copy=${FERRETCD_CACHE:-$HOME/.cache/ferretcd}/mutations
# Of its own: cargo takes what was built of a broken copy for what is built of the same, newer or not, elsewhere.
export CARGO_TARGET_DIR="$copy-target"
rm -rf "$copy"
mkdir -p "$copy"
# As new as now: what an interrupted run has built of a broken file must be built again.
git -C "$root" archive HEAD | tar -xm -C "$copy"
missed=0
for patch in "$root"/e2e/mutations/*.patch; do
  name=$(basename "$patch" .patch)
  left_out=$#
  for part in "$@"; do
    case "$name" in *"$part"*) left_out=0 ;; esac
  done
  [ "$left_out" = 0 ] || continue
  [ -z "${FERRETCD_DONE:-}" ] || ! grep -qx "$name" "$FERRETCD_DONE" || continue
  # Those tests alone that the list says notice it.
  arguments=$(sed -n '1s/^test: //p' "$patch")
  if ! patch --silent --directory="$copy" -p1 < "$patch"; then
    echo "$name: DOES NOT APPLY"; missed=1; continue
  fi
  # shellcheck disable=SC2086
  if ! (cd "$copy" && cargo test --quiet --no-run $arguments > "$copy.log" 2>&1); then
    echo "$name: DOES NOT COMPILE (see $copy.log)"; missed=1
  else
    code=0
    (cd "$copy" && timeout 900 cargo test $arguments > "$copy.log" 2>&1) || code=$?
    noticed=$(sed -n 's/^test \(.*\) \.\.\. FAILED/\1/p' "$copy.log" | head -3 | tr '\n' ' ')
    # What takes too long, or ends before a test has failed, may do so for any reason.
    if [ "$code" = 0 ]; then
      echo "$name: NOT CAUGHT by cargo test $arguments"; missed=1
    elif [ "$code" = 124 ] || [ -z "$noticed" ]; then
      echo "$name: NO TEST FAILED, yet cargo test $arguments ended with $code (see $copy.log)"; missed=1
    elif [ "${arguments#*ferretcd-sim}" != "$arguments" ] && ! grep -qE ': seed .* FAILED$|exit status: 3: ' "$copy.log"; then
      # A seed that hangs, or things that come about too seldom, are no promise that was seen broken.
      echo "$name: NO SEED SAYS WHAT IS WRONG (see $copy.log)"; missed=1
    else
      echo "$name: caught by $noticed"
      # What the first seeds of the simulation found.
      sed -n '/: seed .* FAILED$/{n;p}' "$copy.log" | cut -c1-150 | sort | uniq -c | sort -rn | head -3
      [ -z "${FERRETCD_DONE:-}" ] || echo "$name" >> "$FERRETCD_DONE"
    fi
  fi
  patch --silent --reverse --directory="$copy" -p1 < "$patch"
done
exit $missed
