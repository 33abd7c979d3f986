//! Images that come as files: what `docker save` writes, and OCI layouts as archives or as folders.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use oci_client::manifest::ImageIndexEntry;
use run::PrincipalName;
use serde::Deserialize;

use crate::board::Board;
use crate::bundle::{self, Bundle, Piece};
use crate::digest;
use crate::disk::broken;
use crate::layers::Source;
use crate::manifest::{self, Blob, Document};
use crate::pull::{Found, Pull, Pulled, Puller, off_thread};
use crate::reference::Reference;
use crate::view::View;
use crate::{ImageError, Platform, Progress};

/// An image that is read from somewhere else than a registry.
#[derive(Debug)]
pub enum Archive {
    /// A file, or a folder with an OCI layout.
    Path(PathBuf),
    /// What has been received. It need not be a file that can be read twice.
    File(File),
}

/// One image of a bundle.
#[derive(Clone, Debug)]
struct Loadable {
    /// As the bundle calls it.
    names: Vec<String>,
    digest: String,
    manifest_digest: String,
    config: Vec<u8>,
    /// The lowest first.
    layers: Vec<Piece>,
}

/// Where Docker and containerd write down what an image is called.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
const MOST_INDEXES: usize = 2;
/// Of `manifest.json`, `index.json` and all else that is read at once.
const DOCUMENT_BYTES: u64 = 8 << 20;
/// Of all that is read of one bundle. A list names the same config as often as it likes.
const DOCUMENTS_BYTES: u64 = 64 << 20;

/// One line of `manifest.json`, which `docker save` writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Puller {
    /// Loads the image of that name, or the only one whatever its name; without a name, all there are.
    pub(crate) async fn load(
        self: &Arc<Self>,
        archive: Archive,
        wanted: Option<Reference>,
        owner: Option<PrincipalName>,
        board: Arc<Board>,
    ) -> Result<Vec<Pulled>, ImageError> {
        let (puller, name) = (Arc::clone(self), wanted.clone());
        let found = off_thread(move || puller.look_into(archive, name)).await?;
        let mut loaded = Vec::new();
        for (image, loadable) in found {
            let view = View { owner: owner.clone(), registries: Arc::clone(&self.registries) };
            let pull = Pull {
                puller: Arc::clone(self),
                image,
                view,
                board: Arc::clone(&board),
                held_up: Arc::default(),
            };
            let pulled = pull.load(loadable).await?;
            pulled.is_durable().await?;
            board.say(Progress::Ready { digest: pulled.record.digest.clone() });
            loaded.push(pulled);
        }
        Ok(loaded)
    }

    /// Blocks.
    fn look_into(
        &self,
        archive: Archive,
        wanted: Option<Reference>,
    ) -> Result<Vec<(Reference, Loadable)>, ImageError> {
        let shown = wanted.as_ref().map_or_else(|| "of the archive".to_owned(), ToString::to_string);
        let bad = |reason: String| ImageError::BadImage { reference: shown.clone(), reason };
        let (spool, limit) = (&self.config.dir, self.config.limits.image_bytes);
        let opened = match archive {
            Archive::Path(path) => Bundle::open(&path, spool, limit),
            Archive::File(file) => Bundle::of_file(file, spool, limit),
        };
        let bundle = opened.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ImageError::NoSpace { reference: shown.clone() }
            }
            io::ErrorKind::Other => bad(format!("it is no archive that can be read: {error}")),
            _ => broken("read an image's archive", error),
        })?;
        let images = images(&bundle, &self.config.platform).map_err(&bad)?;
        choose(images, wanted).map_err(bad)
    }
}

impl Pull {
    async fn load(&self, loadable: Loadable) -> Result<Pulled, ImageError> {
        let Loadable { digest, manifest_digest, config, layers, .. } = loadable;
        let described = self.described(&config)?;
        let limits = &self.puller.config.limits;
        if layers.len() as u64 > limits.layers {
            return Err(self.too_large("layers", limits.layers));
        }
        let compressed_bytes = layers.iter().map(|layer| layer.size).sum();
        let layers = layers.into_iter().map(Source::Piece).collect();
        self.assemble(Found {
            digest,
            manifest_digest,
            described,
            layers,
            compressed_bytes,
            resolved_at: None,
        })
        .await
    }
}

/// Which images are to be loaded, and under which names.
fn choose(
    mut images: Vec<Loadable>,
    wanted: Option<Reference>,
) -> Result<Vec<(Reference, Loadable)>, String> {
    let parse = |name: &String| Reference::parse(name).ok();
    if let Some(wanted) = wanted {
        let has_name = |image: &Loadable| image.names.iter().filter_map(parse).any(|name| name == wanted);
        let at = match images.iter().position(has_name) {
            Some(at) => at,
            None if images.len() == 1 => 0,
            None => {
                let names: Vec<_> = images.iter().flat_map(|image| image.names.clone()).take(20).collect();
                return Err(format!(
                    "the archive holds {} images and none of that name: {}",
                    images.len(),
                    names.join(", ")
                ));
            }
        };
        return Ok(vec![(wanted, images.swap_remove(at))]);
    }
    let mut chosen = Vec::new();
    for image in images {
        let names: Vec<_> = image.names.iter().filter_map(parse).collect();
        if names.is_empty() {
            return Err("an image in it has no name; say how it is to be called".into());
        }
        chosen.extend(names.into_iter().map(|name| (name, image.clone())));
    }
    Ok(chosen)
}

/// Every image of a bundle, for this machine. Where it is both, a layout says more than Docker's list.
fn images(bundle: &Bundle, platform: &Platform) -> Result<Vec<Loadable>, String> {
    let bundle = &Reader { bundle, left: Cell::new(DOCUMENTS_BYTES) };
    let images = if let Some(index) = bundle.piece("index.json") {
        layout(bundle, &bundle.read(&index, "index.json")?, platform)?
    } else if let Some(list) = bundle.piece("manifest.json") {
        saved(bundle, &bundle.read(&list, "manifest.json")?)?
    } else {
        return Err("there is neither index.json nor manifest.json in it".into());
    };
    if images.is_empty() { Err("there is no image in it".into()) } else { Ok(images) }
}

/// A bundle whose documents are read into memory, and how much more of them may be.
struct Reader<'a> {
    bundle: &'a Bundle,
    left: Cell<u64>,
}

impl Reader<'_> {
    fn piece(&self, name: &str) -> Option<Piece> {
        self.bundle.piece(name)
    }

    fn read(&self, piece: &Piece, name: &str) -> Result<Vec<u8>, String> {
        let left = self.left.get().checked_sub(piece.size).ok_or_else(|| {
            format!("its lists, manifests and configs have more than {DOCUMENTS_BYTES} bytes together")
        })?;
        self.left.set(left);
        piece.read_whole(DOCUMENT_BYTES).map_err(|error| format!("{name} can't be read: {error}"))
    }
}

fn saved(bundle: &Reader<'_>, list: &[u8]) -> Result<Vec<Loadable>, String> {
    let list: Vec<Saved> =
        serde_json::from_slice(list).map_err(|error| format!("its manifest.json is broken: {error}"))?;
    let piece = |name: &str| bundle.piece(name).ok_or_else(|| format!("it lacks {name:.200}"));
    let load = |saved: Saved| {
        let config = bundle.read(&piece(&saved.config)?, "the config")?;
        // There is no manifest in it: an image's id, which is its config's digest, stands for that.
        let digest = digest::sha256(&config);
        let layers = saved.layers.iter().map(|name| piece(name)).collect::<Result<_, _>>()?;
        let names = saved.repo_tags.unwrap_or_default();
        Ok(Loadable { names, digest: digest.clone(), manifest_digest: digest, config, layers })
    };
    list.into_iter().map(load).collect()
}

fn layout(bundle: &Reader<'_>, index: &[u8], platform: &Platform) -> Result<Vec<Loadable>, String> {
    let Document::Index(index) = manifest::read(index, None)? else {
        return Err("its index.json is no index".into());
    };
    let name_of = |entry: &ImageIndexEntry| {
        let annotations = entry.annotations.as_ref()?;
        NAMES.iter().find_map(|name| annotations.get(*name).cloned())
    };
    let named = index.manifests.iter().filter(|entry| name_of(entry).is_some()).collect::<Vec<_>>();
    // Without names its entries are one image for several machines.
    let entries = match named.is_empty() {
        true => vec![manifest::choose(&index, platform).map_err(|there| format!("it is only for {there}"))?],
        false => named,
    };
    let load = |entry: &ImageIndexEntry| {
        let loadable = follow(bundle, entry, platform)?;
        Ok(Loadable { names: name_of(entry).into_iter().collect(), ..loadable })
    };
    entries.into_iter().map(load).collect()
}

/// From an entry of a layout's index to its image.
fn follow(bundle: &Reader<'_>, entry: &ImageIndexEntry, platform: &Platform) -> Result<Loadable, String> {
    let top = entry.digest.clone();
    let mut wanted = top.clone();
    for _ in 0..=MOST_INDEXES {
        match manifest::read(&document(bundle, &wanted)?, None)? {
            Document::Index(index) => {
                let entry = manifest::choose(&index, platform);
                wanted.clone_from(&entry.map_err(|there| format!("it is only for {there}"))?.digest);
            }
            Document::Image(image) => {
                let (config, layers) = manifest::blobs(&image)?;
                let config = document(bundle, &config.digest)?;
                let layers = layers.iter().map(|layer| blob(bundle, layer)).collect::<Result<_, _>>()?;
                return Ok(Loadable {
                    names: Vec::new(),
                    digest: top,
                    manifest_digest: wanted,
                    config,
                    layers,
                });
            }
        }
    }
    Err("its indexes lead to indexes without end".into())
}

fn path(digest: &str) -> Result<String, String> {
    let hex =
        digest::hex_of(digest).ok_or_else(|| format!("it names a blob {digest:.100?} that can't be"))?;
    let algorithm = digest.split(':').next().unwrap_or_default();
    Ok(format!("blobs/{algorithm}/{hex}"))
}

fn document(bundle: &Reader<'_>, digest: &str) -> Result<Vec<u8>, String> {
    let piece = bundle.piece(&path(digest)?).ok_or_else(|| format!("it lacks the blob {digest}"))?;
    let bytes = bundle.read(&piece, digest)?;
    if digest::matches(digest, &bytes) {
        Ok(bytes)
    } else {
        Err(format!("its blob {digest} has other bytes than its digest says"))
    }
}

/// A layer is checked when it is unpacked: the config, whose digest was checked, says what must come out.
fn blob(bundle: &Reader<'_>, blob: &Blob) -> Result<Piece, String> {
    let piece =
        bundle.piece(&path(&blob.digest)?).ok_or_else(|| format!("it lacks the blob {}", blob.digest))?;
    if piece.size == blob.size {
        Ok(piece)
    } else {
        Err(format!("its blob {} is not as long as its manifest says", blob.digest))
    }
}

/// A file for an archive that is being received. It goes when it is closed, however that comes about.
pub(crate) fn receive(puller: &Puller) -> Result<File, ImageError> {
    bundle::spooled(&puller.config.dir).map_err(|error| broken("make a file for an archive", error))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// What its author has to send is 1 MiB and a line for each image.
    #[test]
    fn a_list_that_names_one_config_again_and_again_is_not_held_in_memory() {
        let spool = tempfile::tempdir().unwrap();
        let line = r#"{"Config":"c","RepoTags":["a"],"Layers":[]}"#;
        let list = format!("[{}]", vec![line; 200].join(","));
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in [("c", vec![b' '; 1 << 20]), ("manifest.json", list.into_bytes())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        let mut file = bundle::spooled(spool.path()).unwrap();
        file.write_all(&tar.into_inner().unwrap()).unwrap();
        let bundle = Bundle::of_file(file, spool.path(), 1 << 30).unwrap();
        let error = images(&bundle, &Platform::default()).unwrap_err();
        assert!(error.contains("together"), "{error}");
    }
}
