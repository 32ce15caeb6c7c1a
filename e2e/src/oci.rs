//! Container images without a daemon: an OCI image layout in one tar file, of one uncompressed layer, the same bytes for
//! the same contents. Read by `ctr images import`, skopeo, podman and docker.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::run;

/// An image in the making.
#[derive(Debug, Clone)]
pub struct Image {
    /// The full name with its tag, for example `ferretcd.io/pause:1`.
    name: String,
    /// What a container of it runs.
    entrypoint: Vec<String>,
    /// A container's own command takes the place of the entrypoint, instead of being its arguments.
    replaceable: bool,
    /// What is at each path (without the leading slash). A sorted map, so that the layer is the same each time.
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Folder { mode: u32 },
    File { source: PathBuf, mode: u32 },
    Link { target: PathBuf },
}

impl Image {
    /// An image called `name` (with a tag) that runs `entrypoint`. It holds an empty /tmp and nothing else.
    pub fn new(name: &str, entrypoint: &[&str]) -> Result<Self> {
        // The tag follows the last colon, which must come after the last slash (a registry may have a port).
        match name.rsplit_once(':') {
            Some((repository, tag)) if !repository.is_empty() && !tag.is_empty() && !tag.contains('/') => {}
            _ => bail!("the image name {name:?} has no tag: write it like ferretcd.io/ferretcd:dev"),
        }
        let mut image = Self {
            name: name.to_owned(),
            entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
            replaceable: false,
            entries: BTreeMap::new(),
        };
        image.put(Path::new("/tmp"), Entry::Folder { mode: 0o1777 })?;
        Ok(image)
    }

    /// The full name with its tag.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets a container's own command take the place of what the image runs, as in etcd's image: `etcd --name=…` in a
    /// compose file is a whole command there.
    pub fn replaceable(mut self) -> Self {
        self.replaceable = true;
        self
    }

    /// Adds the file `source` at the absolute path `path`.
    pub fn file(&mut self, path: &Path, source: &Path, mode: u32) -> Result<()> {
        if !source.is_file() {
            bail!("{} is not a file; it was to become {} in the image {}", source.display(), path.display(), self.name);
        }
        self.put(path, Entry::File { source: source.to_path_buf(), mode })
    }

    /// Adds the program `source` at the absolute path `path`, with the shared libraries and the loader that it needs, each
    /// at the path where this host has it.
    pub fn program(&mut self, path: &Path, source: &Path) -> Result<()> {
        self.file(path, source, 0o755)?;
        for library in shared_libraries(source)? {
            self.file(&library, &library.canonicalize()?, 0o755)?;
        }
        Ok(())
    }

    /// Adds a symbolic link at the absolute path `path`.
    pub fn link(&mut self, path: &Path, target: &Path) -> Result<()> {
        self.put(path, Entry::Link { target: target.to_path_buf() })
    }

    fn put(&mut self, path: &Path, entry: Entry) -> Result<()> {
        let Ok(inside) = path.strip_prefix("/") else {
            bail!("{} is not an absolute path in the image {}", path.display(), self.name);
        };
        for folder in inside.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            self.entries.entry(folder.to_path_buf()).or_insert(Entry::Folder { mode: 0o755 });
        }
        self.entries.insert(inside.to_path_buf(), entry);
        Ok(())
    }

    /// Writes the image as an OCI archive. The file appears whole or not at all.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let context = || format!("writing the image {} to {}", self.name, archive.display());
        let layer_file = archive.with_extension("layer.tmp");
        let archive_tmp = archive.with_extension("tmp");
        let result = self.write_to(&layer_file, &archive_tmp).and_then(|()| Ok(fs::rename(&archive_tmp, archive)?));
        let _ = fs::remove_file(&layer_file);
        let _ = fs::remove_file(&archive_tmp);
        result.with_context(context)
    }

    fn write_to(&self, layer_file: &Path, archive: &Path) -> Result<()> {
        let layer = self.write_layer(layer_file)?;
        let config = json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                (if self.replaceable { "Cmd" } else { "Entrypoint" }): self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        });
        let config = Blob::of(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.describe("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.describe("application/vnd.oci.image.layer.v1.tar")],
        });
        let manifest = Blob::of(manifest.to_string());
        let mut entry = manifest.describe("application/vnd.oci.image.manifest.v1+json");
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        // containerd takes the full name from its own annotation; the standard one holds only the tag.
        entry["annotations"] = json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });

        let mut tar = tar::Builder::new(io::BufWriter::new(File::create(archive)?));
        append_bytes(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append_bytes(&mut tar, "index.json", index.to_string().as_bytes())?;
        for blob in [&config, &manifest] {
            append_bytes(&mut tar, &blob.path(), &blob.bytes)?;
        }
        let mut header = header(tar::EntryType::Regular, 0o644, layer.size);
        tar.append_data(&mut header, layer.path(), File::open(layer_file)?)?;
        tar.into_inner()?.flush()?;
        Ok(())
    }

    fn write_layer(&self, file: &Path) -> Result<Blob> {
        let mut tar = tar::Builder::new(Hashing::new(io::BufWriter::new(File::create(file)?)));
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder { mode } => {
                    tar.append_data(&mut header(tar::EntryType::Directory, *mode, 0), path, io::empty())?;
                }
                Entry::File { source, mode } => {
                    let contents = File::open(source).with_context(|| format!("opening {}", source.display()))?;
                    let size = contents.metadata()?.len();
                    tar.append_data(&mut header(tar::EntryType::Regular, *mode, size), path, contents)?;
                }
                Entry::Link { target } => {
                    tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target)?;
                }
            }
        }
        let mut hashing = tar.into_inner()?;
        hashing.flush()?;
        Ok(Blob { bytes: Vec::new(), digest: digest(hashing.hash), size: hashing.size })
    }
}

/// A blob of the layout. A layer's bytes stay in their file.
struct Blob {
    bytes: Vec<u8>,
    digest: String,
    size: u64,
}

impl Blob {
    fn of(text: String) -> Self {
        let bytes = text.into_bytes();
        Self { digest: digest(Sha256::new_with_prefix(&bytes)), size: bytes.len() as u64, bytes }
    }

    fn describe(&self, media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.size})
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

fn digest(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Times and owners are zero, so that equal contents make equal images.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append_bytes(tar: &mut tar::Builder<impl Write>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
}

/// The architecture by the name that Go and OCI have for it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images are made for x86_64 and aarch64, and this is {other}"),
    }
}

/// The shared libraries and the loader of a program, as `ldd` sees them; none for a static one.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // ldd runs the loader of the program, so it fails on a static one; the program's interpreter field says which it is.
    if !has_interpreter(&fs::read(program)?) {
        return Ok(Vec::new());
    }
    let said = run::output(Command::new("ldd").arg(program))?.stdout;
    parse_ldd(&said).with_context(|| format!("finding the shared libraries of {}", program.display()))
}

/// Whether an ELF file names a loader. A static-pie program has none either.
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: [u8; 4] = 3u32.to_le_bytes();
    let field = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    };
    // ELF64: the program headers start at the offset at 0x20, each of the size at 0x36, as many as at 0x38 says.
    let (Some(start), Some(size), Some(count)) = (field(0x20, 8), field(0x36, 2), field(0x38, 2)) else { return false };
    (0..count).any(|number| elf.get(start + number * size..).is_some_and(|header| header.starts_with(&PT_INTERP)))
}

fn parse_ldd(said: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in said.lines().map(str::trim) {
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        if place.starts_with("not found") {
            bail!("a library is missing on this host: {line}");
        }
        // The kernel's own page (linux-vdso) has no path.
        if let Some(path) = place.split_whitespace().next().filter(|path| path.starts_with('/')) {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

/// A writer that hashes and counts what passes through it.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read_archive(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        files
    }

    #[test]
    fn an_archive_holds_what_its_index_says_under_the_right_digests() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "contents").unwrap();
        let mut image = Image::new("ferretcd.io/x:1", &["/bin/x"]).unwrap();
        image.file(Path::new("/bin/x"), &source, 0o755).unwrap();
        image.link(Path::new("/bin/y"), Path::new("x")).unwrap();
        let (first, second) = (folder.path().join("1.tar"), folder.path().join("2.tar"));
        image.write(&first).unwrap();
        image.write(&second).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

        let files = read_archive(&first);
        for (path, bytes) in &files {
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(Sha256::new_with_prefix(bytes)), format!("sha256:{hex}"));
            }
        }
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "ferretcd.io/x:1");
        let blob =
            |digest: &serde_json::Value| &files[&format!("blobs/{}", digest.as_str().unwrap().replace(':', "/"))];
        let manifest: serde_json::Value = serde_json::from_slice(blob(&index["manifests"][0]["digest"])).unwrap();
        let layer = blob(&manifest["layers"][0]["digest"]);
        let paths: Vec<String> = tar::Archive::new(layer.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["bin", "bin/x", "bin/y", "tmp"]);
    }

    #[test]
    fn the_servers_image_runs_whole_commands_and_answers_to_etcd() {
        let folder = tempfile::tempdir().unwrap();
        let (binary, archive) = (folder.path().join("ferretcd"), folder.path().join("image.tar"));
        fs::write(&binary, "a program").unwrap();
        crate::images::ferretcd(&binary).unwrap().write(&archive).unwrap();
        let files = read_archive(&archive);
        let config = files.values().find(|bytes| bytes.starts_with(br#"{"architecture"#)).unwrap();
        let config: serde_json::Value = serde_json::from_slice(config).unwrap();
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["/usr/local/bin/ferretcd"]));
        assert_eq!(config["config"]["Entrypoint"], serde_json::Value::Null);
        let layer = files.iter().find(|(path, bytes)| path.starts_with("blobs") && !bytes.starts_with(b"{")).unwrap().1;
        let mut layer = tar::Archive::new(layer.as_slice());
        let mut entries = layer.entries().unwrap().map(Result::unwrap);
        let etcd = entries.find(|entry| entry.path().unwrap() == Path::new("usr/local/bin/etcd")).unwrap();
        assert_eq!(etcd.link_name().unwrap().unwrap(), Path::new("ferretcd"));
    }

    #[test]
    fn a_name_without_a_tag_is_refused() {
        for name in ["ferretcd.io/x", "host:5000/x", "x:", ":1"] {
            assert!(Image::new(name, &[]).is_err(), "{name}");
        }
    }

    #[test]
    fn libraries_are_what_ldd_finds() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux.so.2 (0x3)\n";
        assert_eq!(parse_ldd(said).unwrap(), [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld-linux.so.2")]);
        assert!(parse_ldd("\tlibzz.so.1 => not found\n").unwrap_err().to_string().contains("libzz"));
    }

    #[test]
    fn a_dynamic_program_brings_its_loader() {
        let mut image = Image::new("x:1", &[]).unwrap();
        image.program(Path::new("/t"), &std::env::current_exe().unwrap()).unwrap();
        assert!(image.entries.keys().any(|path| path.to_string_lossy().contains("/ld-linux")));
    }
}
