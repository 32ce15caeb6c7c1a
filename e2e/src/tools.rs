//! The programs that are not ours, built from their released sources. Each has a go.mod of its own, so that "real etcd
//! 3.7.1" is built with the very versions that release names, and lies in the cache under a key of what it was built from.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::cache::Cache;
use crate::progress::say;
use crate::run;

/// The programs, built on demand. Building takes from a second (pause) to ten minutes (kubernetes) on two cores.
#[derive(Debug, Clone)]
pub struct Tools {
    cache: Cache,
}

impl Tools {
    /// The tools in `cache`.
    pub fn new(cache: Cache) -> Self {
        Self { cache }
    }

    /// The path of `bin`, after building its tool if the cache does not have it.
    pub fn path(&self, bin: Bin) -> Result<PathBuf> {
        let recipe = bin.recipe();
        let folder = self.build(recipe)?;
        Ok(folder.join(bin.file_name()))
    }

    /// etcdctl of the pinned etcd release.
    pub fn etcdctl(&self) -> Result<PathBuf> {
        self.path(Bin::Etcdctl)
    }

    /// kubectl of the pinned Kubernetes release.
    pub fn kubectl(&self) -> Result<PathBuf> {
        self.path(Bin::Kubectl)
    }

    /// Helm.
    pub fn helm(&self) -> Result<PathBuf> {
        self.path(Bin::Helm)
    }

    /// Builds the named tools, or all of them but the clients if `names` is empty, and returns the folder of each.
    pub fn build_named(&self, names: &[String]) -> Result<Vec<(&'static str, PathBuf)>> {
        let mut wanted = Vec::new();
        for name in names {
            let all = || RECIPES.iter().chain(&CLIENTS).copied();
            let recipe = all().find(|recipe| recipe.name == name).ok_or_else(|| {
                let known: Vec<_> = all().map(|recipe| recipe.name).collect();
                anyhow!("there is no tool {name:?}; there are: {}", known.join(", "))
            })?;
            wanted.push(recipe);
        }
        if wanted.is_empty() {
            wanted.extend(RECIPES);
        }
        wanted.into_iter().map(|recipe| Ok((recipe.name, self.build(recipe)?))).collect()
    }

    /// The folder with the tool's programs. It exists whole or not at all: the build goes to a folder beside it that is
    /// renamed at the end, under a lock, so that two processes do not build the same thing twice.
    fn build(&self, recipe: &Recipe) -> Result<PathBuf> {
        let folder = self.cache.tools().join(format!("{}-{}-{}", recipe.name, recipe.version, recipe.key()));
        if folder.is_dir() && self.is_linked(recipe, &folder) {
            return Ok(folder);
        }
        let _lock = self.cache.lock(&format!("tool-{}", recipe.name))?;
        if folder.is_dir() {
            self.link(recipe, &folder)?;
            return Ok(folder);
        }
        let work = folder.with_extension("tmp");
        remove_if_there(&work)?;
        let (sources, programs) = (work.join("src"), work.join("bin"));
        fs::create_dir_all(&sources)?;
        fs::create_dir_all(&programs)?;
        for (name, text) in recipe.files {
            fs::write(sources.join(name), text)?;
        }
        let log = self.cache.root().join("logs").join(format!("{}.log", recipe.name));
        fs::create_dir_all(log.parent().unwrap_or(&work))?;
        remove_if_there(&log)?;
        let began = Instant::now();
        for (number, (file, target)) in recipe.programs.iter().enumerate() {
            let what = format!(
                "building {} {}: {file} ({} of {})",
                recipe.name,
                recipe.version,
                number + 1,
                recipe.programs.len()
            );
            say(&what);
            run::logged(&mut recipe.command(&sources, &programs.join(file), target)?, &what, &log)?;
        }
        fs::rename(&programs, &folder).with_context(|| format!("moving the finished tools to {}", folder.display()))?;
        remove_if_there(&work)?;
        self.link(recipe, &folder)?;
        say(format!("built {} {} in {} s", recipe.name, recipe.version, began.elapsed().as_secs()));
        Ok(folder)
    }

    /// Where people find the tool's programs, who cannot know the key.
    fn links(&self, recipe: &Recipe) -> PathBuf {
        self.cache.root().join("bin").join(format!("{}-{}", recipe.name, recipe.version))
    }

    /// Whether the links lead to this folder, not to what another version of the sources made.
    fn is_linked(&self, recipe: &Recipe, folder: &Path) -> bool {
        let links = self.links(recipe);
        recipe.programs.iter().all(|(file, _)| fs::read_link(links.join(file)).is_ok_and(|to| to == folder.join(file)))
    }

    /// Leaves `<cache>/bin/<name>-<version>/<program>`.
    fn link(&self, recipe: &Recipe, folder: &Path) -> Result<()> {
        let links = self.links(recipe);
        fs::create_dir_all(&links)?;
        for (file, _) in recipe.programs {
            let fresh = links.join(format!(".{file}.tmp"));
            remove_if_there(&fresh)?;
            symlink(folder.join(file), &fresh)?;
            fs::rename(&fresh, links.join(file))?;
        }
        Ok(())
    }
}

/// A program that [`Tools`] can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the program of that name")]
pub enum Bin {
    Etcd,
    Etcdctl,
    Etcdutl,
    EtcdBenchmark,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    KubeProxy,
    Kubectl,
    Coredns,
    Helm,
    Versitygw,
    Pause,
}

impl Bin {
    /// The program's file name.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Etcdctl => "etcdctl",
            Self::Etcdutl => "etcdutl",
            Self::EtcdBenchmark => "benchmark",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Coredns => "coredns",
            Self::Helm => "helm",
            Self::Versitygw => "versitygw",
            Self::Pause => "pause",
        }
    }

    /// The version of the release that the program is built from.
    pub fn version(self) -> &'static str {
        self.recipe().version
    }

    fn recipe(self) -> &'static Recipe {
        match self {
            Self::Etcd | Self::Etcdctl | Self::Etcdutl | Self::EtcdBenchmark => &ETCD,
            Self::KubeApiserver
            | Self::KubeControllerManager
            | Self::KubeScheduler
            | Self::Kubelet
            | Self::KubeProxy
            | Self::Kubectl => &KUBERNETES,
            Self::Coredns => &COREDNS,
            Self::Helm => &HELM,
            Self::Versitygw => &S3,
            Self::Pause => &PAUSE,
        }
    }
}

/// How a tool is built. Its sources are part of this program, so it does not need the repository at run time.
struct Recipe {
    name: &'static str,
    version: &'static str,
    builder: Builder,
    /// Files of the source folder, by name.
    files: &'static [(&'static str, &'static str)],
    /// File name and target (a Go package, or a C file) of each program.
    programs: &'static [(&'static str, &'static str)],
}

enum Builder {
    /// `go build` with these linker flags after `-s -w`.
    Go { ldflags: &'static str },
    /// A static C program.
    C,
    /// `build.sh` of the source folder, which makes what its argument names by this program of the host.
    Script(&'static str),
}

macro_rules! go_files {
    ($tool:literal $(, $file:literal)*) => {
        &[
            ("go.mod", include_str!(concat!("../tools/", $tool, "/go.mod"))),
            ("go.sum", include_str!(concat!("../tools/", $tool, "/go.sum"))),
            $(($file, include_str!(concat!("../tools/", $tool, "/", $file))),)*
        ]
    };
}

/// The text of a client's files, in `e2e/clients`.
macro_rules! client_files {
    ($client:literal $(, $file:literal)*) => {
        &[$(($file, include_str!(concat!("../clients/", $client, "/", $file))),)*]
    };
}

/// What other people's clients do with the server, as programs: `server/tests/clients.rs` runs them. They are built only
/// when they are named, so that the other tests need neither Python nor these clients' packages.
static CLIENTS: [&Recipe; 3] = [&GO_CLIENTS, &PYTHON_CLIENTS, &RUST_CLIENTS];

static GO_CLIENTS: Recipe = Recipe {
    name: "go-clients",
    version: "3.7.1",
    builder: Builder::Go { ldflags: "" },
    files: client_files!(
        "go",
        "go.mod",
        "go.sum",
        "barrier.go",
        "discovery.go",
        "election.go",
        "kubernetes.go",
        "kv.go",
        "lease.go",
        "lock.go",
        "main.go",
        "messages.go",
        "queue.go",
        "stm.go",
        "upkeep.go",
        "views.go",
        "watch.go"
    ),
    programs: &[("go-clients", ".")],
};

/// The programs are in the repository; this is the environment that they run in.
static PYTHON_CLIENTS: Recipe = Recipe {
    name: "python-clients",
    version: "1",
    builder: Builder::Script("python3"),
    files: client_files!("python", "build.sh", "requirements.txt"),
    programs: &[("venv", "build.sh")],
};

static RUST_CLIENTS: Recipe = Recipe {
    name: "rust-clients",
    version: "0.21.1",
    builder: Builder::Script("cargo"),
    files: client_files!("rust", "build.sh", "Cargo.toml", "Cargo.lock", "main.rs"),
    programs: &[("rust-clients", "build.sh")],
};

static RECIPES: [&Recipe; 6] = [&ETCD, &PAUSE, &KUBERNETES, &COREDNS, &S3, &HELM];

/// The oracle that our server is compared with, and the clients that it must satisfy.
static ETCD: Recipe = Recipe {
    name: "etcd",
    version: "3.7.1",
    builder: Builder::Go { ldflags: "" },
    files: go_files!("etcd"),
    programs: &[
        ("etcd", "go.etcd.io/etcd/server/v3"),
        ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
        ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
        ("benchmark", "go.etcd.io/etcd/v3/tools/benchmark"),
    ],
};

/// 1.35 is the newest minor release that still supports containerd 1.x, which is what Debian 12 has.
static KUBERNETES: Recipe = Recipe {
    name: "kubernetes",
    version: "1.35.4",
    // Without these the node reports a placeholder version. Both packages hold a copy.
    builder: Builder::Go {
        ldflags: "-X k8s.io/component-base/version.gitVersion=v1.35.4 -X k8s.io/component-base/version.gitMajor=1 \
                  -X k8s.io/component-base/version.gitMinor=35 -X k8s.io/component-base/version.gitTreeState=clean \
                  -X k8s.io/client-go/pkg/version.gitVersion=v1.35.4 -X k8s.io/client-go/pkg/version.gitMajor=1 \
                  -X k8s.io/client-go/pkg/version.gitMinor=35 -X k8s.io/client-go/pkg/version.gitTreeState=clean",
    },
    files: go_files!("kubernetes"),
    programs: &[
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ],
};

static COREDNS: Recipe = Recipe {
    name: "coredns",
    version: "1.15.0",
    builder: Builder::Go { ldflags: "" },
    files: go_files!("coredns", "main.go"),
    programs: &[("coredns", ".")],
};

static HELM: Recipe = Recipe {
    name: "helm",
    version: "4.3.1",
    builder: Builder::Go { ldflags: "-X helm.sh/helm/v4/internal/version.version=v4.3.1" },
    files: go_files!("helm"),
    programs: &[("helm", "helm.sh/helm/v4/cmd/helm")],
};

/// The S3 server; why this one: docs/decisions/0005-s3-server-for-tests.md.
static S3: Recipe = Recipe {
    name: "s3",
    version: "1.8.0",
    builder: Builder::Go { ldflags: "-X main.Version=v1.8.0" },
    files: go_files!("s3"),
    programs: &[("versitygw", "github.com/versity/versitygw/cmd/versitygw")],
};

/// What holds the namespaces of each pod.
static PAUSE: Recipe = Recipe {
    name: "pause",
    version: "1",
    builder: Builder::C,
    files: &[("pause.c", include_str!("../tools/pause/pause.c"))],
    programs: &[("pause", "pause.c")],
};

impl Recipe {
    /// A hash of all that the result depends on, the compilers excepted: a newer Go need not rebuild everything.
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(self.version);
        match self.builder {
            Builder::Go { ldflags } => add(ldflags),
            Builder::C => add("cc"),
            // A virtual environment works with the very version of Python that made it.
            Builder::Script("python3") => add(&host_version("python3")),
            Builder::Script(program) => add(program),
        }
        for (name, text) in self.files.iter().chain(self.programs) {
            add(name);
            add(text);
        }
        hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    fn command(&self, sources: &Path, program: &Path, target: &str) -> Result<Command> {
        let mut command;
        match self.builder {
            Builder::Go { ldflags } => {
                require("go", "Go 1.26 or newer (https://go.dev/dl)")?;
                command = Command::new("go");
                command.args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags"]);
                command.arg(format!("-s -w {ldflags}")).arg("-o").arg(program).arg(target);
                command.env("CGO_ENABLED", "0").env("GOWORK", "off").env_remove("GOFLAGS");
            }
            Builder::C => {
                require("cc", "a C compiler (Debian: apt-get install gcc libc6-dev)")?;
                command = Command::new("cc");
                command.args(["-Os", "-Wall", "-Werror", "-static", "-s", "-o"]).arg(program).arg(target);
            }
            Builder::Script(needed) => {
                require(needed, &format!("{needed} (Debian: apt-get install python3-venv; https://rustup.rs)"))?;
                command = Command::new("sh");
                command.arg(target).arg(program);
                // Crates' build scripts look at what `cargo run` tells this program about itself.
                let about_us = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
                for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(about_us)) {
                    command.env_remove(name);
                }
            }
        }
        command.current_dir(sources);
        Ok(command)
    }
}

/// What a program of the host answers to `--version`; nothing if it is not there.
fn host_version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn require(program: &str, package: &str) -> Result<()> {
    match crate::host::find_program(program) {
        Some(_) => Ok(()),
        None => bail!("`{program}` is not on the PATH: install {package}"),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    let result = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    result.with_context(|| format!("removing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_every_part() {
        let recipe =
            |version, files| Recipe { name: "x", version, builder: Builder::C, files, programs: &[("p", "p.c")] };
        let key = recipe("1", &[("p.c", "a")]).key();
        assert_eq!(key, recipe("1", &[("p.c", "a")]).key());
        assert_ne!(key, recipe("2", &[("p.c", "a")]).key());
        assert_ne!(key, recipe("1", &[("p.c", "b")]).key());
        assert_ne!(key, recipe("1", &[("p.", "ca")]).key());
    }

    #[test]
    fn each_go_tool_names_the_version_that_its_go_mod_pins() {
        for recipe in RECIPES.iter().chain(&CLIENTS).filter(|recipe| matches!(recipe.builder, Builder::Go { .. })) {
            let go_mod = recipe.files[0].1;
            assert!(go_mod.contains(&format!(" v{}", recipe.version)), "{}", recipe.name);
        }
    }

    #[test]
    fn an_unknown_tool_is_refused_with_the_known_names() {
        let folder = tempfile::tempdir().unwrap();
        let tools = Tools::new(Cache::at(folder.path().to_path_buf()).unwrap());
        let error = tools.build_named(&["etcdd".into()]).unwrap_err().to_string();
        assert!(error.contains("etcdd") && error.contains("kubernetes"), "{error}");
    }

    #[test]
    fn a_tool_is_built_once_whole_and_linked() {
        let folder = tempfile::tempdir().unwrap();
        let tools = Tools::new(Cache::at(folder.path().to_path_buf()).unwrap());
        let path = tools.path(Bin::Pause).unwrap();
        let built = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(tools.path(Bin::Pause).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), built);
        assert_eq!(fs::read_link(folder.path().join("bin/pause-1/pause")).unwrap(), path);
        assert_eq!(fs::read_dir(folder.path().join("tools")).unwrap().count(), 1, "no work folder is left");
        // Another version of the sources was built meanwhile.
        let link = folder.path().join("bin/pause-1/pause");
        fs::remove_file(&link).unwrap();
        symlink("elsewhere", &link).unwrap();
        tools.path(Bin::Pause).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), path);
    }
}
