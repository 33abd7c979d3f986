//! What stacking the layers of an image gets wrong, put right in one small layer on top of them.
//!
//! A layer that brings `tmp/x` without describing `tmp` makes its own `tmp`, and an overlay shows the
//! topmost one: the `/tmp` of a lower layer, open to all, would turn into root's. So the directories
//! that a layer only implies get back the looks that the nearest lower layer has described.

use std::collections::BTreeMap;
use std::io;

use tar::{Builder, EntryType, Header};
use unpack::DirMeta;

use crate::disk::KeptLayer;

/// The archive of the layer that is needed, if one is. `layers` are the topmost first.
pub(crate) fn archive(layers: &[KeptLayer]) -> Option<Vec<u8>> {
    let wrong = wrong_dirs(layers);
    if wrong.is_empty() {
        return None;
    }
    let mut builder = Builder::new(Vec::new());
    for (path, meta) in with_parents(&wrong, layers) {
        append(&mut builder, path, meta).ok()?;
    }
    builder.into_inner().ok()
}

/// Directories whose topmost appearance is one that nobody has described.
fn wrong_dirs(layers: &[KeptLayer]) -> BTreeMap<&str, &DirMeta> {
    let mut wrong = BTreeMap::new();
    for (at, layer) in layers.iter().enumerate() {
        for path in &layer.implicit_dirs {
            let is_described_above = described(&layers[..at], path).is_some();
            if !is_described_above && let Some(meta) = described(&layers[at + 1..], path) {
                wrong.insert(path.as_str(), meta);
            }
        }
    }
    wrong
}

/// What the topmost of these layers that describes a directory says.
fn described<'a>(layers: &'a [KeptLayer], path: &str) -> Option<&'a DirMeta> {
    layers.iter().find_map(|layer| layer.special_dirs.iter().find(|dir| dir.path == path))
}

/// The fix-up has every directory on the way, so each of those must look right as well.
fn with_parents<'a>(
    wrong: &BTreeMap<&'a str, &'a DirMeta>,
    layers: &'a [KeptLayer],
) -> BTreeMap<&'a str, Option<&'a DirMeta>> {
    let mut all = BTreeMap::new();
    for (path, meta) in wrong {
        for (slash, _) in path.match_indices('/') {
            let parent = &path[..slash];
            all.entry(parent).or_insert_with(|| described(layers, parent));
        }
        all.insert(path, Some(*meta));
    }
    all
}

fn append(builder: &mut Builder<Vec<u8>>, path: &str, meta: Option<&DirMeta>) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_size(0);
    header.set_mode(meta.map_or(0o755, |meta| meta.mode));
    header.set_uid(meta.map_or(0, |meta| meta.uid).into());
    header.set_gid(meta.map_or(0, |meta| meta.gid).into());
    header.set_mtime(meta.map_or(0, |meta| meta.mtime.max(0).unsigned_abs()));
    builder.append_data(&mut header, path, io::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(path: &str, mode: u32) -> DirMeta {
        DirMeta { path: path.into(), mode, uid: 0, gid: 0, mtime: 5 }
    }

    fn layer(implicit: &[&str], special: &[DirMeta]) -> KeptLayer {
        let implicit_dirs = implicit.iter().map(|path| (*path).to_owned()).collect();
        KeptLayer { entries: 1, implicit_dirs, special_dirs: special.to_vec(), ..KeptLayer::default() }
    }

    fn fixed(layers: &[KeptLayer]) -> Vec<(String, u32)> {
        let bytes = archive(layers).unwrap_or_default();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries
            .map(|entry| (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap()))
            .collect()
    }

    #[test]
    fn an_implied_directory_looks_as_a_lower_layer_says() {
        let base = layer(&[], &[dir("tmp", 0o1777), dir("var/tmp", 0o1777), dir("root", 0o700)]);
        let top = layer(&["tmp", "var", "var/tmp", "app"], &[]);
        assert_eq!(
            fixed(&[top, base]),
            [("tmp".into(), 0o1777), ("var".into(), 0o755), ("var/tmp".into(), 0o1777)]
        );
    }

    #[test]
    fn nothing_is_fixed_that_is_not_wrong() {
        let base = layer(&[], &[dir("tmp", 0o1777)]);
        assert!(archive(&[layer(&["app"], &[]), base.clone()]).is_none());
        assert!(archive(&[layer(&[], &[dir("tmp", 0o700)]), layer(&["tmp"], &[]), base.clone()]).is_none());
        assert!(archive(&[base, layer(&["tmp"], &[])]).is_none());
        assert!(archive(&[]).is_none());
    }
}
