//! Records as files: one JSON file an image and one a layer, written aside, synced and renamed, so
//! that after a crash each is there whole or not at all. One process at a time. When what is durable is
//! told in docs/decisions/0018.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use run::PrincipalName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use unpack::DirMeta;

use crate::view::ShownTo;
use crate::{ImageConfig, ImageError, digest};

const VERSION: &str = "1";

/// How a record is called that will take another's place.
const NEXT: &str = ".json.new";

/// What is known of one image under one name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) reference: String,
    /// Whose alone it is; absent: everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<PrincipalName>,
    /// Of what the name led to: an index, or a manifest.
    pub(crate) digest: String,
    pub(crate) manifest_digest: String,
    pub(crate) platform: String,
    pub(crate) config: ImageConfig,
    /// Names in the layer store that a rootfs is stacked from, the topmost first.
    pub(crate) layers: Arc<[String]>,
    pub(crate) compressed_bytes: u64,
    pub(crate) bytes: u64,
    pub(crate) pulled_at: Timestamp,
    pub(crate) last_used_at: Timestamp,
    /// When a registry last said that the name means this. Absent for what came from a file.
    #[serde(default)]
    pub(crate) resolved_at: Option<Timestamp>,
    /// It is never collected.
    #[serde(default)]
    pub(crate) pinned: bool,
    /// When the registry was last asked, whatever it said. It is not asked again soon.
    #[serde(skip)]
    pub(crate) asked_at: Option<Timestamp>,
    /// When the record was written last, if this process has done so.
    #[serde(skip)]
    pub(crate) saved_at: Option<Timestamp>,
}

impl ImageRecord {
    pub(crate) fn key(&self) -> String {
        key(&self.reference, self.owner.as_ref())
    }
}

/// What an image is kept under: the same name may mean one thing to everybody and another to one principal.
/// No reference has a space in it.
pub(crate) fn key(reference: &str, owner: Option<&PrincipalName>) -> String {
    owner.map_or_else(|| reference.to_owned(), |owner| format!("{reference} of {owner}"))
}

/// What is known of one layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) name: String,
    /// Absent while the layer is on its way in: after a crash the tree may be there or not.
    pub(crate) kept: Option<KeptLayer>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KeptLayer {
    pub(crate) bytes: u64,
    /// What the tree takes of the disk, in its blocks.
    #[serde(default)]
    pub(crate) disk_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) root_opaque: bool,
    #[serde(default)]
    pub(crate) root_described: bool,
    pub(crate) implicit_dirs: Vec<String>,
    pub(crate) special_dirs: Vec<DirMeta>,
    /// Who has shown that it could have the layer.
    #[serde(default)]
    pub(crate) shown_to: ShownTo,
}

impl KeptLayer {
    /// What its going would bring.
    pub(crate) fn weight(&self) -> u64 {
        self.disk_bytes.max(self.bytes)
    }

    /// How many files would go with it, at most.
    pub(crate) fn inodes(&self) -> u64 {
        self.entries
    }
}

#[derive(Debug)]
pub(crate) struct Disk {
    images: PathBuf,
    layers: PathBuf,
    /// Held as long as this is.
    _lock: File,
}

/// A server that was killed, or a child that has not executed its program yet, may hold the lock for
/// a moment longer; a server that lives holds it for good.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

fn take(lock: &File) -> io::Result<()> {
    for _ in 1..LOCK_TRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            result => return result.map_err(io::Error::from),
        }
    }
    Err(io::Error::other("another process is using them"))
}

impl Disk {
    pub(crate) fn open(dir: &Path) -> Result<Self, ImageError> {
        let fail = |error| broken(&format!("open image records in {}", dir.display()), error);
        let (images, layers) = (dir.join("images"), dir.join("layers"));
        fs::create_dir_all(&images).map_err(fail)?;
        fs::create_dir_all(&layers).map_err(fail)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(fail)?;
        take(&lock).map_err(fail)?;
        check_version(dir).map_err(fail)?;
        Ok(Self { images, layers, _lock: lock })
    }

    pub(crate) fn images(&self) -> Result<Vec<ImageRecord>, ImageError> {
        read_all(&self.images, |_| None)
    }

    /// A record that can't be read is of a layer that was on its way in when the machine stopped.
    pub(crate) fn layers(&self) -> Result<Vec<LayerRecord>, ImageError> {
        let on_its_way = |path: &Path| {
            let name = path.file_stem()?.to_str()?;
            digest::names_a_layer(name).then(|| LayerRecord { name: name.to_owned(), kept: None })
        };
        read_all(&self.layers, on_its_way)
    }

    pub(crate) fn write_image(&self, record: &ImageRecord) -> Result<(), ImageError> {
        write(&self.images, &image_file(&record.key()), record)
            .map_err(|error| broken(&format!("record image {}", record.reference), error))
    }

    pub(crate) fn remove_image(&self, key: &str) -> Result<(), ImageError> {
        remove(&self.images, &image_file(key)).map_err(|error| broken(&format!("forget image {key}"), error))
    }

    /// Writes what is known of a layer that is here anew.
    pub(crate) fn write_layer(&self, record: &LayerRecord) -> Result<(), ImageError> {
        write(&self.layers, &format!("{}.json", record.name), record)
            .map_err(|error| broken(&format!("record layer {}", record.name), error))
    }

    /// Says of layers that they are on their way in, and beside that what they will be. Nothing of it is
    /// durable before [`Disk::sync`].
    pub(crate) fn announce(&self, layers: &[(String, KeptLayer)]) -> Result<(), ImageError> {
        for (name, kept) in layers {
            let write = |file: String, kept| {
                let record = LayerRecord { name: name.clone(), kept };
                fs::write(self.layers.join(file), serde_json::to_vec(&record)?)
            };
            write(format!("{name}.json"), None)
                .and_then(|()| write(format!("{name}{NEXT}"), Some(kept.clone())))
                .map_err(|error| broken(&format!("record layer {name}"), error))?;
        }
        Ok(())
    }

    /// Makes durable whatever has been written, however many files that is.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        let synced = File::open(&self.layers).and_then(|folder| Ok(nix::unistd::syncfs(folder)?));
        synced.map_err(|error| broken("sync records", error))
    }

    /// Says that announced layers are in.
    pub(crate) fn settle(&self, layers: &[(String, KeptLayer)]) -> Result<(), ImageError> {
        for (name, _) in layers {
            let (next, file) = (format!("{name}{NEXT}"), format!("{name}.json"));
            fs::rename(self.layers.join(next), self.layers.join(file))
                .map_err(|error| broken(&format!("record layer {name}"), error))?;
        }
        sync_folder(&self.layers).map_err(|error| broken("sync records", error))
    }

    pub(crate) fn remove_layer(&self, name: &str) -> Result<(), ImageError> {
        // What it was to become is nothing without it, so that goes first and may stay.
        let _ = fs::remove_file(self.layers.join(format!("{name}{NEXT}")));
        remove(&self.layers, &format!("{name}.json"))
            .map_err(|error| broken(&format!("forget layer {name}"), error))
    }
}

/// References have slashes; their hashes don't.
fn image_file(key: &str) -> String {
    format!("{}.json", digest::hex_of(&digest::sha256(key.as_bytes())).unwrap_or_default())
}

fn check_version(dir: &Path) -> io::Result<()> {
    let path = dir.join("version");
    match fs::read_to_string(&path) {
        Ok(version) if version.trim() == VERSION => Ok(()),
        Ok(version) => {
            Err(io::Error::other(format!("they are of version {}, not {VERSION}", version.trim())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_bytes(dir, "version", VERSION.as_bytes())
        }
        Err(error) => Err(error),
    }
}

/// A file that can't be read is removed, unless something is known by its name: what it described can be had again. So
/// is one that was to take another's place and has not.
fn read_all<T: DeserializeOwned>(
    dir: &Path,
    by_name: impl Fn(&Path) -> Option<T>,
) -> Result<Vec<T>, ImageError> {
    let fail = |error| broken(&format!("read {}", dir.display()), error);
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            fs::remove_file(&path).map_err(fail)?;
            continue;
        }
        let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match record.or_else(|| by_name(&path)) {
            Some(record) => records.push(record),
            None => {
                tracing::warn!(path = %path.display(), "removing a record that can't be read");
                fs::remove_file(&path).map_err(fail)?;
            }
        }
    }
    Ok(records)
}

fn write(dir: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    write_bytes(dir, name, &serde_json::to_vec(record)?)
}

fn write_bytes(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let aside = dir.join(format!("{name}.new"));
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, dir.join(name))?;
    sync_folder(dir)
}

fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn remove(dir: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.and_then(|()| sync_folder(dir)),
    }
}

pub(crate) fn broken(doing: &str, error: io::Error) -> ImageError {
    ImageError::Store { doing: doing.into(), source: Arc::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> (String, KeptLayer) {
        (name.into(), KeptLayer { entries: 7, ..KeptLayer::default() })
    }

    #[test]
    fn records_survive_and_what_is_half_written_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        disk.announce(&[layer("a"), layer("b"), layer("on-its-way")]).unwrap();
        disk.sync().unwrap();
        disk.settle(&[layer("a"), layer("b")]).unwrap();
        disk.remove_layer("b").unwrap();
        disk.remove_layer("b").unwrap();
        fs::write(dir.path().join("layers/c.json"), "{").unwrap();
        // Nothing but its name is left of what was written last.
        let cut_off = "0123456789abcdef".repeat(4);
        fs::write(dir.path().join(format!("layers/{cut_off}.json")), "").unwrap();
        fs::write(dir.path().join("layers/d.json.new"), "{").unwrap();
        drop(disk);
        let layers = Disk::open(dir.path()).unwrap().layers().unwrap().into_iter();
        let mut layers: Vec<_> =
            layers.map(|layer| (layer.name, layer.kept.map(|kept| kept.entries))).collect();
        layers.sort();
        assert_eq!(layers, [(cut_off, None), ("a".into(), Some(7)), ("on-its-way".into(), None)]);
        assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 3);
    }

    #[test]
    fn a_store_has_one_user_and_one_version() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        assert!(Disk::open(dir.path()).is_err());
        drop(disk);
        fs::write(dir.path().join("version"), "2").unwrap();
        let error = Disk::open(dir.path()).unwrap_err();
        assert!(format!("{:?}", std::error::Error::source(&error)).contains("version 2"));
    }
}
