//! The trees of the layer store. Only the privileged side ever touches them, by descriptor, and only
//! by names that can be nothing but a layer's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::dir;
use crate::rootfs::{self, LayerMode};
use crate::step::{At, Failure};

/// Where layers are unpacked before they are committed, and where they go before they are deleted.
pub(crate) const TMP: &str = "tmp";
pub(crate) const TRASH: &str = "trash";

/// What runs have prepared for others, under this launcher.
const FROZEN: &str = "frozen";

/// The same of earlier launchers, until the server has said what of it somebody still waits for.
const FORMER: &str = "former";

/// The store's root as the launcher sees it after it has left the host's.
pub(crate) const STORE: &str = "/layers";

/// A layer is named by its diff id; a second copy in one image has a number behind it.
pub(crate) fn check_name(layer: &str) -> Result<(), Failure> {
    let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if let Some(("frozen", name)) = layer.split_once('/') {
        return if name.len() == 32 && is_hex(name) { Ok(()) } else { Err(no_name(layer)) };
    }
    let (hex, copy) = layer.split_once('-').unwrap_or((layer, "0"));
    let is_hex = (hex.len() == 64 || hex.len() == 128) && is_hex(hex);
    let is_number = !copy.is_empty() && copy.len() <= 4 && copy.bytes().all(|byte| byte.is_ascii_digit());
    if is_hex && is_number { Ok(()) } else { Err(no_name(layer)) }
}

fn no_name(layer: &str) -> Failure {
    Failure::new("check layer name", format!("{layer:?} names no layer"))
}

/// Makes the store's folders and throws away what an earlier life left half done. Deleting that may
/// take long and is left to [`crate::trash`].
pub(crate) fn open(path: &Path) -> Result<OwnedFd, Failure> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).at("make layer store")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).at("close layer store")?;
    std::fs::DirBuilder::new().recursive(true).create(path.join(TRASH)).at("make layer store")?;
    let (folder, trashed) = (path.join(TMP), path.join(TRASH).join(unique(TMP)));
    if folder.exists() {
        std::fs::rename(&folder, trashed).at("clean layer store")?;
    }
    for name in [TMP, FROZEN] {
        std::fs::DirBuilder::new().recursive(true).create(path.join(name)).at("make layer store")?;
    }
    set_aside(path).at("set aside what was frozen before")?;
    dir::open_dir(path).at("open layer store")
}

fn set_aside(path: &Path) -> io::Result<()> {
    let former = path.join(FORMER);
    for frozen in path.join(FROZEN).read_dir()? {
        let frozen = frozen?;
        std::fs::DirBuilder::new().recursive(true).create(&former)?;
        std::fs::rename(frozen.path(), former.join(frozen.file_name()))?;
    }
    Ok(())
}

/// Read-only views of the layers, topmost first, with ids mapped to the run's. What is put into `open` has to stay so
/// until an overlay has them.
pub(crate) fn views(
    store: &OwnedFd,
    layers: &[String],
    userns: Option<BorrowedFd<'_>>,
    mode: LayerMode,
    open: &mut Vec<OwnedFd>,
) -> Result<Vec<OwnedFd>, Failure> {
    layers.iter().try_for_each(|layer| check_name(layer))?;
    let found =
        |store: &OwnedFd, layer: &String, flags| dir::open_dir_beneath(store, layer, flags).at("open layer");
    match mode {
        // An image may have a hundred layers. One view of the whole store is enough for all of them, since an overlay
        // clones what it is given and sees nothing above it.
        LayerMode::Detached => {
            let store = rootfs::view(store.as_fd(), userns).at("map layers")?;
            let views = layers.iter().map(|layer| found(&store, layer, OFlag::O_PATH)).collect();
            open.push(store);
            views
        }
        LayerMode::Attached => {
            let view =
                |layer| rootfs::view(found(store, layer, OFlag::empty())?.as_fd(), userns).at("map layer");
            layers.iter().map(view).collect()
        }
    }
}

/// A fresh directory for one layer.
pub(crate) fn begin(store: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let tmp = dir::open_dir_beneath(store, TMP, OFlag::empty())?;
    mkdirat(&tmp, name, Mode::from_bits_truncate(0o755))?;
    dir::open_dir_beneath(&tmp, name, OFlag::empty())
}

/// Gives a tree its name. What has that name already is of an earlier life, whose record was lost, or could not be
/// kept: nobody uses it, and nobody knows whether it is whole.
pub(crate) fn name(store: &OwnedFd, name: &str, layer: &str) -> io::Result<()> {
    let tmp = dir::open_dir_beneath(store, TMP, OFlag::empty())?;
    match renameat2(&tmp, name, store, layer, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EEXIST) => {
            renameat2(&tmp, name, store, layer, RenameFlags::RENAME_EXCHANGE)?;
            abort(name)
        }
        result => Ok(result?),
    }
}

/// Gives a frozen tree its name. It is not made durable: it may outlive the launcher, but not the machine's power.
pub(crate) fn keep_frozen(store: &OwnedFd, name: &str, layer: &str) -> io::Result<()> {
    let tmp = dir::open_dir_beneath(store, TMP, OFlag::empty())?;
    Ok(renameat2(&tmp, name, store, layer, RenameFlags::RENAME_NOREPLACE)?)
}

/// Takes over what an earlier launcher has frozen; `false` where it is gone.
pub(crate) fn adopt(store: &OwnedFd, layer: &str) -> Result<bool, Failure> {
    check_name(layer)?;
    let (_, name) = layer.split_once('/').ok_or_else(|| no_name(layer))?;
    let former = match dir::open_dir_beneath(store, FORMER, OFlag::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        former => former.at("open what was frozen before")?,
    };
    match renameat2(&former, name, store, layer, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::ENOENT) => Ok(false),
        result => result.at("take over what was frozen before").map(|()| true),
    }
}

/// Takes the names of all that earlier launchers have frozen and nobody has taken over, and says how that is called
/// in the trash.
pub(crate) fn discard_former(store: &OwnedFd) -> Result<String, Failure> {
    to_trash(store, FORMER)
}

pub(crate) fn abort(name: &str) -> io::Result<()> {
    std::fs::remove_dir_all(Path::new(STORE).join(TMP).join(name))
}

/// A name that nothing in the trash has had.
fn unique(name: &str) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{name}.{}.{}", std::process::id(), since.as_nanos())
}

/// Takes the name away, and says how the tree behind it is called in the trash.
pub(crate) fn discard(store: &OwnedFd, layer: &str) -> Result<String, Failure> {
    check_name(layer)?;
    to_trash(store, layer)
}

fn to_trash(store: &OwnedFd, layer: &str) -> Result<String, Failure> {
    let name = unique(&layer.replace('/', "-"));
    let trash = dir::open_dir_beneath(store, TRASH, OFlag::empty()).at("open trash")?;
    match renameat2(store, layer, &trash, name.as_str(), RenameFlags::empty()) {
        Err(Errno::ENOENT) => Ok(name),
        result => result.at("move layer to trash").map(|()| name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_frozen_before_is_there_for_who_takes_it_over_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c"].map(|letter| format!("frozen/{}", letter.repeat(32)));
        let store = open(folder.path()).unwrap();
        names[..2].iter().for_each(|name| std::fs::create_dir(folder.path().join(name)).unwrap());
        drop(store);
        // Also over a launcher that has died before anybody could ask.
        drop(open(folder.path()).unwrap());
        let store = open(folder.path()).unwrap();
        assert!(!folder.path().join(&names[0]).exists());
        assert!(adopt(&store, &names[0]).unwrap() && folder.path().join(&names[0]).exists());
        assert!(!adopt(&store, &names[0]).unwrap() && !adopt(&store, &names[2]).unwrap());
        assert!(adopt(&store, &"a".repeat(64)).is_err());
        let trashed = discard_former(&store).unwrap();
        assert!(folder.path().join(TRASH).join(trashed).join("b".repeat(32)).exists());
        assert!(!adopt(&store, &names[1]).unwrap() && folder.path().join(&names[0]).exists());
    }

    #[test]
    fn only_a_layer_s_name_is_a_layer_s_name() {
        let hex = "0123456789abcdef".repeat(4);
        assert!(check_name(&hex).is_ok());
        assert!(check_name(&format!("{hex}-1")).is_ok());
        assert!(check_name(&format!("frozen/{}", &hex[..32])).is_ok());
        for bad in [
            "",
            "tmp",
            "..",
            "../x",
            &hex[1..],
            &hex.to_uppercase(),
            &format!("{hex}-"),
            &format!("{hex}-x"),
            &format!("{hex}/.."),
            "frozen",
            "frozen/",
            "frozen/..",
            &format!("frozen/{}", &hex[..31]),
            &format!("frozen/{}/", &hex[..31]),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
