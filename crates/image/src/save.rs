//! Images of the store as an archive for other machines: an OCI layout that has the list of `docker save` as
//! well, so that everybody who loads images can load it. Layers are packed anew from their trees, and so
//! their digests are seldom those of the registry; the files are the same. Of an image's configuration there
//! is what is heeded here.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::sync::Arc;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use unpack::{PackJob, Packed, UnpackError};

use crate::bundle::spooled;
use crate::digest::{self, Hasher};
use crate::disk::{ImageRecord, KeptLayer, broken};
use crate::pull::{Puller, off_thread};
use crate::reference::Reference;
use crate::shelf::Taken;
use crate::{ImageConfig, ImageError};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub reference: String,
    /// Of its manifest in the archive.
    pub digest: String,
    pub layers: usize,
}

/// A file of the archive that is named by its content.
#[derive(Clone, Debug)]
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn path(&self) -> String {
        format!("blobs/sha256/{}", digest::hex_of(&self.digest).unwrap_or_default())
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({ "mediaType": kind, "digest": self.digest, "size": self.size })
    }
}

impl Puller {
    /// The images are held for as long as this takes.
    pub(crate) async fn save(
        self: &Arc<Self>,
        images: Vec<(Reference, Taken)>,
        to: File,
    ) -> Result<Vec<Saved>, ImageError> {
        let mut archive = Archive::new(to);
        let mut packed: HashMap<String, Blob> = HashMap::new();
        for (_, Taken { record, .. }) in &images {
            let fail = |error: ImageError| error.in_words(&record.reference);
            for layer in record.layers.iter() {
                if !packed.contains_key(layer) {
                    let (blob, spool) = self.pack(layer).await.map_err(fail)?;
                    archive = archive.add(&blob, spool).await.map_err(fail)?;
                    packed.insert(layer.clone(), blob);
                }
            }
        }
        let described = images.into_iter().map(|(image, taken)| (image, taken.record)).collect();
        off_thread(move || {
            archive.finish(described, &packed).map_err(|error| broken("write an archive", error))
        })
        .await
    }

    /// Packs a layer into a file that nobody else can find, because its length stands before it in the archive.
    async fn pack(&self, layer: &str) -> Result<(Blob, File), ImageError> {
        let fail = |error| broken("pack a layer", error);
        let KeptLayer { implicit_dirs, root_described, .. } =
            self.shelf.layer(layer).await.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        let job = PackJob { implicit_dirs, root_described };
        let mut packing = self.shelf.store.pack(layer, &job).await.map_err(fail)?;
        let mut file = spooled(&self.config.dir).map_err(fail)?;
        let (mut hash, mut size) = (Hasher::sha256(), 0);
        loop {
            let bytes = packing.read().await.map_err(fail)?;
            if bytes.is_empty() {
                break;
            }
            size += bytes.len() as u64;
            (file, hash) = off_thread(move || {
                hash.update(&bytes);
                file.write_all(&bytes).map_err(fail)?;
                Ok((file, hash))
            })
            .await?;
        }
        let report = packing.finish().await.map_err(fail)?;
        let packed: Result<Packed, UnpackError> =
            serde_json::from_str(&report).map_err(|error| fail(error.into()))?;
        let packed = packed.map_err(|error| fail(io::Error::other(error)))?;
        if packed.bytes != size {
            return Err(fail(io::Error::other("the archive is not as long as its packer says")));
        }
        Ok((Blob { digest: hash.finish(), size }, file))
    }
}

/// The archive as far as it is written.
struct Archive {
    tar: Builder<BufWriter<File>>,
    /// Blobs that are in it; two layers may turn out to be one.
    has: BTreeMap<String, u64>,
}

impl Archive {
    fn new(to: File) -> Self {
        Self { tar: Builder::new(BufWriter::with_capacity(1 << 18, to)), has: BTreeMap::new() }
    }

    async fn add(mut self, blob: &Blob, mut file: File) -> Result<Self, ImageError> {
        let blob = blob.clone();
        off_thread(move || {
            let added = file.rewind().and_then(|()| self.blob(&blob, file));
            added.map(|()| self).map_err(|error| broken("write an archive", error))
        })
        .await
    }

    fn blob(&mut self, blob: &Blob, content: impl Read) -> io::Result<()> {
        match self.has.insert(blob.digest.clone(), blob.size) {
            Some(_) => Ok(()),
            None => self.file(&blob.path(), blob.size, content),
        }
    }

    fn file(&mut self, path: &str, size: u64, content: impl Read) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        self.tar.append_data(&mut header, path, content)
    }

    fn document(&mut self, value: &Value) -> io::Result<Blob> {
        let bytes = serde_json::to_vec(value)?;
        let blob = Blob { digest: digest::sha256(&bytes), size: bytes.len() as u64 };
        self.blob(&blob, bytes.as_slice())?;
        Ok(blob)
    }

    /// Writes what says of the layers which images they are. It blocks.
    fn finish(
        mut self,
        images: Vec<(Reference, ImageRecord)>,
        packed: &HashMap<String, Blob>,
    ) -> io::Result<Vec<Saved>> {
        let (mut entries, mut list, mut saved) = (Vec::new(), Vec::new(), Vec::new());
        for (image, record) in images {
            let layers: Vec<&Blob> = record.layers.iter().rev().filter_map(|name| packed.get(name)).collect();
            let config = self.document(&config(&record, &layers))?;
            let manifest = self.document(&json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(CONFIG),
                "layers": layers.iter().map(|layer| layer.descriptor(LAYER)).collect::<Vec<_>>(),
            }))?;
            let mut entry = manifest.descriptor(MANIFEST);
            // A name with a digest was true of the registry's manifest and is not of this one.
            let tag = image.tag.clone().filter(|_| image.digest.is_none());
            if let Some(tag) = &tag {
                entry["annotations"] = json!({
                    "io.containerd.image.name": record.reference, "org.opencontainers.image.ref.name": tag,
                });
            }
            entries.push(entry);
            list.push(json!({
                "Config": config.path(), "RepoTags": tag.map(|_| vec![&record.reference]),
                "Layers": layers.iter().map(|layer| layer.path()).collect::<Vec<_>>(),
            }));
            saved.push(Saved { reference: record.reference, digest: manifest.digest, layers: layers.len() });
        }
        for (name, value) in [
            ("index.json", json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries })),
            ("manifest.json", Value::Array(list)),
            ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ] {
            let bytes = serde_json::to_vec(&value)?;
            self.file(name, bytes.len() as u64, bytes.as_slice())?;
        }
        self.tar.into_inner()?.flush()?;
        Ok(saved)
    }
}

fn config(record: &ImageRecord, layers: &[&Blob]) -> Value {
    let ImageConfig { env, workdir, user, entrypoint, cmd } = &record.config;
    let mut platform = record.platform.split('/');
    let mut config = json!({
        "os": platform.next(), "architecture": platform.next(), "created": "1970-01-01T00:00:00Z",
        "config": { "Env": env, "WorkingDir": workdir, "User": user, "Entrypoint": entrypoint, "Cmd": cmd },
        // Layers are not compressed, so their digests are what they unpack to.
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>() },
        "history": layers.iter().map(|_| json!({ "created_by": "sandglass image save" })).collect::<Vec<_>>(),
    });
    if let Some(variant) = platform.next() {
        config["variant"] = json!(variant);
    }
    config
}
