//! What benchmarks want to know of layers and of registries, and images that are made to be measured.

use std::io::{Read, Write};

use serde_json::Value;

use crate::image::{Blob, MANIFEST};
use crate::{Compression, Image, Layer, Registry};

impl Layer {
    /// How long the archive is without its compression.
    pub fn unpacked_bytes(&self) -> u64 {
        let packed = self.blob.bytes();
        let mut plain: Box<dyn Read + '_> = match self.media_type.rsplit_once('+') {
            Some((_, "gzip")) => Box::new(flate2::read::MultiGzDecoder::new(&*packed)),
            Some((_, "zstd")) => Box::new(zstd::stream::Decoder::new(&*packed).expect("begin to read zstd")),
            _ => Box::new(&*packed),
        };
        std::io::copy(&mut plain, &mut std::io::sink()).expect("read a layer")
    }

    /// A layer that is small while it travels, and whose first file has attributes of that many bytes: one
    /// comment. Nobody who reads on as far as the file needs to know whether the diff id is right.
    pub fn pax_bomb(bytes: u64) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_path("bomb").expect("a short name");
        header.set_mode(0o644);
        header.set_size(bytes);
        header.set_cksum();
        let start = format!("{bytes} comment=");
        let rest = std::io::repeat(b'x').take(bytes - start.len() as u64 - 1);
        let end = vec![b'\n'; 1 + (512 - bytes as usize % 512) % 512];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let pack = |gzip: &mut dyn Write| {
            let mut whole = header.as_bytes().chain(start.as_bytes()).chain(rest).chain(&*end);
            std::io::copy(&mut whole, gzip)
        };
        pack(&mut gzip).expect("compress into memory");
        let packed = gzip.finish().expect("compress into memory");
        let mut layer = Self::from_tar(Compression::Gzip, b"");
        layer.blob = Blob::new(packed);
        layer.size = layer.blob.len();
        layer
    }
}

impl Registry {
    /// An image of this registry, to make others of its layers.
    #[track_caller]
    pub fn image_of(&self, repository: &str, tag: &str) -> Image {
        let get = |path: String| self.request("GET", &path).header("Accept", MANIFEST).send().expect(200);
        let manifest = get(format!("/v2/{repository}/manifests/{tag}"));
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let config = get(format!("/v2/{repository}/blobs/{}", text(&manifest["config"]["digest"])));
        let diff_ids = config["rootfs"]["diff_ids"].as_array().expect("a list");
        let layers = manifest["layers"].as_array().expect("a list").iter().zip(diff_ids);
        let layer = |(layer, diff_id): (&Value, &Value)| {
            let name = text(&layer["digest"]);
            let (algorithm, hex) = name.split_once(':').expect("a digest");
            let file = format!("docker/registry/v2/blobs/{algorithm}/{}/{hex}/data", &hex[..2]);
            Layer {
                blob: Blob::in_file(&name, self.storage().join(file)),
                diff_id: text(diff_id),
                media_type: text(&layer["mediaType"]),
                size: layer["size"].as_u64().expect("a number"),
            }
        };
        Image::new(layers.map(layer).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_as_long_as_its_archive_however_it_travels() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let layer = Layer::compressed(compression, |tar| {
                tar.file("a", vec![0; 100_000]);
            });
            // A header, the content in blocks, and two blocks of zeros.
            assert_eq!(layer.unpacked_bytes(), 512 + 100_352 + 1024, "{compression:?}");
        }
    }

    #[test]
    fn a_bomb_is_small_until_somebody_reads_it() {
        let bomb = Layer::pax_bomb(10_000_000);
        assert!(bomb.blob.len() < 100_000, "{bomb:?}");
        assert_eq!(bomb.unpacked_bytes(), 512 + 10_000_384);
    }

    #[test]
    fn what_a_registry_has_makes_the_same_image_again() {
        let registry = Registry::start();
        let image = registry.image_of("busybox", "latest");
        registry.push("again", "1", &image);
        assert_eq!(registry.layers_of("again", "1"), registry.layers_of("busybox", "latest"));
        assert_eq!(crate::image::digest(&image.layers[0].blob.bytes()), image.layers[0].blob.digest);
    }
}
