//! Images made by hand: layers from a list of entries, good and evil, and a configuration.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::Header;

/// What kind of thing a layer's entry is.
pub use tar::EntryType;

use crate::tool;

/// How a layer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    fn compress(self, plain: &mut dyn Read, into: &mut dyn Write) -> std::io::Result<()> {
        match self {
            Self::None => std::io::copy(plain, into).map(drop),
            Self::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(into, flate2::Compression::fast());
                std::io::copy(plain, &mut gzip)?;
                gzip.finish().map(drop)
            }
            Self::Zstd => zstd::stream::copy_encode(plain, into, 3),
        }
    }
}

/// Something that a registry keeps under its digest.
#[derive(Clone)]
pub struct Blob {
    pub digest: String,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Bytes(Arc<[u8]>),
    File(PathBuf),
}

impl Blob {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { digest: digest(&bytes), content: Content::Bytes(bytes.into()) }
    }

    /// One that is in a file already, under the digest that it has.
    pub(crate) fn in_file(digest: &str, path: PathBuf) -> Self {
        Self { digest: digest.into(), content: Content::File(path) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        match &self.content {
            Content::Bytes(bytes) => bytes.to_vec(),
            Content::File(path) => std::fs::read(path).expect("read a blob"),
        }
    }

    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(path) => path.metadata().expect("look at a blob").len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({}, {} bytes)", self.digest, self.len())
    }
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// One layer. Its fields can be changed to make a manifest that lies.
#[derive(Clone, Debug)]
pub struct Layer {
    pub blob: Blob,
    pub diff_id: String,
    pub media_type: String,
    /// What the manifest says; the truth unless changed.
    pub size: u64,
}

impl Layer {
    /// A gzip layer of the entries that `fill` adds.
    pub fn build(fill: impl FnOnce(&mut Tar)) -> Self {
        Self::compressed(Compression::Gzip, fill)
    }

    pub fn compressed(compression: Compression, fill: impl FnOnce(&mut Tar)) -> Self {
        let mut tar = Tar(tar::Builder::new(Vec::new()));
        fill(&mut tar);
        Self::from_tar(compression, &tar.0.into_inner().expect("finish a tar"))
    }

    /// A layer of any bytes, a tar or not.
    pub fn from_tar(compression: Compression, tar: &[u8]) -> Self {
        let mut bytes = Vec::new();
        compression.compress(&mut &*tar, &mut bytes).expect("compress a layer");
        Self::new(Blob::new(bytes), digest(tar), compression)
    }

    /// A layer too large for memory: `tar` compressed into the file `into`.
    pub fn from_file(compression: Compression, tar: &Path, into: &Path) -> std::io::Result<Self> {
        compression.compress(&mut File::open(tar)?, &mut File::create(into)?)?;
        let blob = Blob::in_file(&hash_file(into)?, into.to_owned());
        Ok(Self::new(blob, hash_file(tar)?, compression))
    }

    fn new(blob: Blob, diff_id: String, compression: Compression) -> Self {
        let size = blob.len();
        Self { blob, diff_id, media_type: compression.media_type().into(), size }
    }
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut HashWriter(&mut hash))?;
    Ok(hex(&hash.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The entries of a layer, in order. Paths are written as they are given, `..` and `/` included.
pub struct Tar(tar::Builder<Vec<u8>>);

impl fmt::Debug for Tar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tar")
    }
}

impl Tar {
    pub fn dir(&mut self, path: &str) -> &mut Self {
        self.entry(EntryType::Directory, path, 0o755, (0, 0), b"")
    }

    pub fn file(&mut self, path: &str, content: impl AsRef<[u8]>) -> &mut Self {
        self.entry(EntryType::Regular, path, 0o644, (0, 0), content.as_ref())
    }

    pub fn program(&mut self, path: &str, content: impl AsRef<[u8]>) -> &mut Self {
        self.entry(EntryType::Regular, path, 0o755, (0, 0), content.as_ref())
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.link(EntryType::Symlink, path, target)
    }

    pub fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.link(EntryType::Link, path, target)
    }

    /// Hides what lower layers have at `path`.
    pub fn whiteout(&mut self, path: &str) -> &mut Self {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        let slash = if folder.is_empty() { "" } else { "/" };
        self.file(&format!("{folder}{slash}.wh.{name}"), "")
    }

    /// Hides everything that lower layers have in `folder`.
    pub fn opaque(&mut self, folder: &str) -> &mut Self {
        self.file(&format!("{folder}/.wh..wh..opq"), "")
    }

    /// Any entry with any mode, owner and content.
    pub fn entry(
        &mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        (uid, gid): (u64, u64),
        content: &[u8],
    ) -> &mut Self {
        let mut header = header(kind, mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(content.len() as u64);
        self.append(header, path, content)
    }

    /// A device node: `EntryType::Char` or `EntryType::Block`.
    pub fn device(&mut self, kind: EntryType, path: &str, major: u32, minor: u32) -> &mut Self {
        let mut header = header(kind, 0o666);
        header.set_device_major(major).expect("a GNU header has device numbers");
        header.set_device_minor(minor).expect("a GNU header has device numbers");
        self.append(header, path, b"")
    }

    fn link(&mut self, kind: EntryType, path: &str, target: &str) -> &mut Self {
        let mut header = header(kind, 0o777);
        put(&mut header.as_old_mut().linkname, target);
        self.append(header, path, b"")
    }

    /// An entry with a header of the caller's own, whose path and checksum are filled in here.
    pub fn append(&mut self, mut header: Header, path: &str, content: &[u8]) -> &mut Self {
        put(&mut header.as_old_mut().name, path);
        header.set_cksum();
        self.0.append(&header, content).expect("append to a tar");
        self
    }

    /// A path of more than 99 bytes, written as GNU tar does.
    pub fn long_file(&mut self, path: &str, content: impl AsRef<[u8]>) -> &mut Self {
        let mut header = header(EntryType::Regular, 0o644);
        header.set_size(content.as_ref().len() as u64);
        self.0.append_data(&mut header, path, content.as_ref()).expect("append to a tar");
        self
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(1_700_000_000);
    header
}

fn put(field: &mut [u8], text: &str) {
    assert!(text.len() < field.len(), "{text} is too long for a plain tar header");
    field.fill(0);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// An image: layers, lowest first, and what its configuration says.
#[derive(Clone, Debug)]
pub struct Image {
    pub layers: Vec<Layer>,
    /// The whole configuration but `rootfs`.
    pub config: Value,
}

impl Image {
    pub fn new(layers: impl Into<Vec<Layer>>) -> Self {
        let config = json!({ "architecture": architecture(), "os": "linux", "config": {} });
        Self { layers: layers.into(), config }
    }

    /// A shell and the usual tools, a user `bob`, and a configuration that says something of everything.
    pub fn busybox() -> Self {
        Self::busybox_as(Compression::Gzip)
    }

    pub fn busybox_as(compression: Compression) -> Self {
        Self::new([busybox_layer(compression)])
            .set(
                "Env",
                json!([
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "FROM_IMAGE=yes"
                ]),
            )
            .set("WorkingDir", json!("/srv"))
            .set("Cmd", json!(["sh"]))
    }

    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// One value of the configuration's `config`: `Env`, `WorkingDir`, `User`, `Entrypoint`, `Cmd`…
    #[must_use]
    pub fn set(mut self, name: &str, value: Value) -> Self {
        self.config["config"][name] = value;
        self
    }

    /// For another machine than this one.
    #[must_use]
    pub fn architecture(mut self, name: &str) -> Self {
        self.config["architecture"] = name.into();
        self
    }

    pub fn config_blob(&self) -> Blob {
        let mut config = self.config.clone();
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        Blob::new(config.to_string())
    }

    pub fn manifest(&self) -> Value {
        let config = self.config_blob();
        let describe = |layer: &Layer| json!({ "mediaType": layer.media_type, "digest": layer.blob.digest, "size": layer.size });
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.digest,
                "size": config.len(),
            },
            "layers": self.layers.iter().map(describe).collect::<Vec<_>>(),
        })
    }
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// This machine, as images call it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Debian's static busybox with all of its applets.
pub fn busybox_layer(compression: Compression) -> Layer {
    let program = tool("busybox");
    let applets = crate::Finished::output(&program, &["--list"]);
    let bytes = std::fs::read(&program).expect("read busybox");
    Layer::compressed(compression, |tar| {
        for folder in ["bin", "etc", "home", "proc", "root", "srv", "tmp", "usr", "usr/bin", "var"] {
            tar.dir(folder);
        }
        tar.program("bin/busybox", &bytes);
        for applet in applets.lines().filter(|name| *name != "busybox") {
            tar.symlink(&format!("bin/{applet}"), "busybox");
        }
        tar.symlink("usr/bin/env", "../../bin/busybox");
        tar.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000:Bob:/home/bob:/bin/sh\n");
        tar.file("etc/group", "root:x:0:\nbob:x:1000:\nwheel:x:10:root,bob\n");
        tar.entry(EntryType::Directory, "home/bob", 0o755, (1000, 1000), b"");
        tar.entry(EntryType::Regular, "home/bob/note", 0o600, (1000, 1000), b"bob's own\n");
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_describes_what_it_holds() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let layer = Layer::compressed(compression, |tar| {
                tar.dir("a").file("a/b", "text").symlink("c", "/etc").whiteout("a/gone").file("../out", "");
            });
            let plain = match compression {
                Compression::None => layer.blob.bytes(),
                Compression::Gzip => {
                    let mut plain = Vec::new();
                    flate2::read::GzDecoder::new(&*layer.blob.bytes()).read_to_end(&mut plain).unwrap();
                    plain
                }
                Compression::Zstd => zstd::stream::decode_all(&*layer.blob.bytes()).unwrap(),
            };
            assert_eq!(digest(&plain), layer.diff_id);
            let names: Vec<_> = tar::Archive::new(&*plain)
                .entries()
                .unwrap()
                .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
                .collect();
            assert_eq!(names, ["a", "a/b", "c", "a/.wh.gone", "../out"]);
            let image = Image::new([layer.clone()]);
            assert_eq!(image.manifest()["layers"][0]["size"], layer.blob.len());
        }
    }
}
