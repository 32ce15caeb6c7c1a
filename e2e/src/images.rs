//! The project's images: what is in each, and how they get to a cluster's node.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host;
use crate::oci::Image;
use crate::run;
use crate::tools::{Bin, Tools};

/// The server.
pub const FERRETCD: &str = "ferretcd.io/ferretcd:dev";
/// The operator, which is the backup agent too.
pub const OPERATOR: &str = "ferretcd.io/ferretcd-operator:dev";
/// What holds a pod's namespaces.
pub const PAUSE: &str = "ferretcd.io/pause:1";
/// The cluster's DNS.
pub const COREDNS: &str = "ferretcd.io/coredns:1.15.0";
/// The S3 server.
pub const S3: &str = "ferretcd.io/versitygw:1.8.0";
/// A shell with etcdctl, etcdutl and a few small programs, for the pods that tests look around from.
pub const TOOLBOX: &str = "ferretcd.io/toolbox:1";

/// Programs of the host that the toolbox holds.
const TOOLBOX_PROGRAMS: [&str; 12] =
    ["sh", "cat", "cp", "date", "env", "getent", "hostname", "ls", "mkdir", "rm", "sleep", "sync"];

/// The server's image, from its binary. It answers to `etcd` too, so it fits where etcd's image is expected.
pub fn ferretcd(binary: &Path) -> Result<Image> {
    let mut image = Image::new(FERRETCD, &["/usr/local/bin/ferretcd"])?.replaceable();
    image.program(Path::new("/usr/local/bin/ferretcd"), binary)?;
    image.link(Path::new("/usr/local/bin/etcd"), Path::new("ferretcd"))?;
    image.link(Path::new("/usr/local/bin/etcdutl"), Path::new("ferretcd"))?;
    Ok(image)
}

/// The operator's image, from its binary.
pub fn operator(binary: &Path) -> Result<Image> {
    one_program(OPERATOR, "ferretcd-operator", binary)
}

/// The pause image.
pub fn pause(tools: &Tools) -> Result<Image> {
    one_program(PAUSE, "pause", &tools.path(Bin::Pause)?)
}

/// The image of the cluster's DNS.
pub fn coredns(tools: &Tools) -> Result<Image> {
    one_program(COREDNS, "coredns", &tools.path(Bin::Coredns)?)
}

/// The S3 server's image.
pub fn s3(tools: &Tools) -> Result<Image> {
    one_program(S3, "versitygw", &tools.path(Bin::Versitygw)?)
}

/// The toolbox.
pub fn toolbox(tools: &Tools) -> Result<Image> {
    let mut image = Image::new(TOOLBOX, &["/bin/sh"])?;
    for name in TOOLBOX_PROGRAMS {
        let program = host::find_program(name).with_context(|| format!("the toolbox needs `{name}` of this host"))?;
        image.program(&Path::new("/bin").join(name), &program.canonicalize()?)?;
    }
    image.program(Path::new("/bin/etcdctl"), &tools.path(Bin::Etcdctl)?)?;
    image.program(Path::new("/bin/etcdutl"), &tools.path(Bin::Etcdutl)?)?;
    Ok(image)
}

/// The image `name` with the one program `file_name` as its entrypoint.
pub fn one_program(name: &str, file_name: &str, binary: &Path) -> Result<Image> {
    let path = Path::new("/usr/local/bin").join(file_name);
    let mut image = Image::new(name, &[&path.display().to_string()])?;
    image.program(&path, binary)?;
    Ok(image)
}

/// A copy of `binary` in `folder` without its debug information, which is most of a debug build.
pub fn stripped(binary: &Path, folder: &Path) -> Result<PathBuf> {
    let Some(name) = binary.file_name().filter(|_| binary.is_file()) else {
        bail!("{} is not a program file: build it first (cargo build)", binary.display());
    };
    let copy = folder.join(name);
    run::output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(binary))
        .context("removing debug information (strip is in Debian's binutils)")?;
    Ok(copy)
}

/// The name of an image in the registry `registry`: its own name without the part before the first slash.
pub fn in_registry(name: &str, registry: &str) -> String {
    let short = name.split_once('/').map_or(name, |(_, short)| short);
    format!("{}/{short}", registry.trim_end_matches('/'))
}

/// Sends an archive to a registry with skopeo, or says what to do where there is none.
pub fn push(archive: &Path, target: &str) -> Result<()> {
    if host::find_program("skopeo").is_none() {
        bail!(
            "skopeo, which sends an image to a registry, is not installed (Debian: apt-get install skopeo). Install it and \
             run this again, or send the image yourself: {} is to become {target}",
            archive.display()
        );
    }
    let (from, to) = (format!("oci-archive:{}", archive.display()), format!("docker://{target}"));
    run::output(Command::new("skopeo").args(["copy", &from, &to])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_registry_only_the_host_part_changes() {
        assert_eq!(in_registry(FERRETCD, "registry.example:5000/team/"), "registry.example:5000/team/ferretcd:dev");
    }

    #[test]
    fn a_missing_binary_is_refused_with_the_next_step() {
        let error = stripped(Path::new("/no/ferretcd"), Path::new("/tmp")).unwrap_err().to_string();
        assert!(error.contains("/no/ferretcd") && error.contains("cargo build"), "{error}");
    }
}
