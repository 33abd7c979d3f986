//! Every file of an image is what `umoci` and `podman` make of it, but for what is told here:
//!
//! - setuid and setgid bits, device nodes and capabilities are taken off: no sandbox can use them;
//! - a directory that a layer brings only as the parent of something looks as the layers below say; podman
//!   gives it `0755`, the owner root and the time of the pull;
//! - a hard link is another name of a file; podman gives the file the mode that the link's own entry says;
//! - of directories from which a later layer takes something away, `umoci`, which writes all layers into one
//!   tree, and `podman` have other times than the archive says.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use support::image::EntryType;
use support::{Daemon, Finished, Folder, Image, Layer, Registry, Value, json, tool};

const LIST: &str = include_str!("list_tree.py");
const SPECIAL_BITS: u64 = 0o6000;

pub(crate) type Tree = BTreeMap<String, Value>;

/// What a shell's script says, which sees `$1`, `$2`… and has mounts of its own.
fn script(script: &str, words: &[&Path]) -> String {
    let mut command = Command::new(tool("unshare"));
    command.args(["--mount", "sh", "-euc", script, "sh"]).args(words);
    let done = Finished::of(&mut command);
    assert_eq!(done.code(), Some(0), "{script}: {}", done.stderr_text());
    done.stdout_text()
}

/// Reads what `list_tree.py` has written. Which names are one file is told by the first of them.
fn read(lines: &str) -> Tree {
    let mut tree = Tree::new();
    let mut first_names: BTreeMap<u64, String> = BTreeMap::new();
    for line in lines.lines() {
        let entry: Value = parse(line);
        tree.insert(entry["path"].as_str().expect("a path").to_owned(), entry);
    }
    for (path, entry) in &mut tree {
        let Some(inode) = entry["inode"].as_u64() else { continue };
        let names = entry["names"].as_u64().unwrap_or(1);
        let first = first_names.entry(inode).or_insert_with(|| path.clone());
        entry["same_as"] = if names > 1 { json!(first) } else { Value::Null };
        entry["inode"] = Value::Null;
    }
    tree
}

fn parse(line: &str) -> Value {
    line.parse().unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// The image as a run would see it, stacked from the store's layers.
fn ours(registry: &Registry, name: &str) -> Tree {
    let daemon = Daemon::with_registry(registry);
    daemon.post("/images", &json!({ "image": registry.image(name) })).expect(200);
    in_store(&daemon.data_dir())
}

/// The only image of a store.
pub(crate) fn in_store(data_dir: &Path) -> Tree {
    let records = data_dir.join("records/images");
    let record = std::fs::read_dir(records).expect("read records").flatten().next().expect("a record");
    let record = std::fs::read_to_string(record.path()).expect("read a record");
    let layers: Vec<String> = parse(&record)["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|layer| layer.as_str().expect("a name").to_owned())
        .collect();
    // Mounted by number: names of layers are long, and the options of a mount short.
    let folder = Folder::new();
    let (list, store) = (folder.join("list.py"), data_dir.join("layers"));
    std::fs::write(&list, LIST).expect("write a script");
    std::fs::create_dir(folder.join("empty")).expect("make a folder");
    let mut lower = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        std::os::unix::fs::symlink(store.join(layer), folder.join(at.to_string())).expect("link a layer");
        lower.push(at.to_string());
    }
    let options = format!("lowerdir={}:empty", lower.join(":"));
    let mount = format!(
        "cd \"$1\"; mkdir merged; mount -t overlay overlay -o {options} merged; python3 list.py merged"
    );
    read(&script(&mount, &[folder.path()]))
}

fn umoci(registry: &Registry, name: &str) -> Tree {
    let folder = Folder::new();
    std::fs::write(folder.join("list.py"), LIST).expect("write a script");
    let unpack = format!(
        "cd \"$1\"; skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://{} oci:layout:x >&2; \
         umoci unpack --image layout:x bundle >&2; python3 list.py bundle/rootfs",
        registry.image(name)
    );
    read(&script(&unpack, &[folder.path()]))
}

fn podman(registry: &Registry, name: &str) -> Tree {
    let image = registry.image(name);
    in_podman(&format!("p pull --quiet --tls-verify=false {image}"), &image, &[])
}

/// What `p`, podman with a store of its own, has of an image that it gets with this script and these words.
pub(crate) fn in_podman(get: &str, image: &str, words: &[&Path]) -> Tree {
    let folder = Folder::new();
    std::fs::write(folder.join("list.py"), LIST).expect("write a script");
    let list = format!(
        "cd \"$1\"; p() {{ podman --root \"$PWD/root\" --runroot \"$PWD/run\" --storage-driver overlay \"$@\"; }}; \
         {get} >&2; python3 list.py \"$(p image mount {image})\""
    );
    read(&script(&list, &[&[folder.path()], words].concat()))
}

/// What differs, a line each, beside what `may_differ` allows: by path and by field.
pub(crate) fn differences(
    ours: &Tree,
    theirs: &Tree,
    may_differ: impl Fn(&str, &str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for path in ours.keys().chain(theirs.keys()) {
        match (ours.get(path), theirs.get(path)) {
            (Some(_), None) => found.push(format!("{path}: only ours")),
            (None, Some(entry))
                if ["char", "block"].contains(&entry["kind"].as_str().unwrap_or_default()) => {}
            (None, Some(_)) => found.push(format!("{path}: only theirs")),
            (Some(ours), Some(theirs)) => {
                let fields = [
                    "kind", "mode", "uid", "gid", "mtime", "size", "names", "same_as", "content", "target",
                    "xattrs",
                ];
                for field in fields {
                    let mut expected = theirs[field].clone();
                    if let ("mode", Some(mode)) = (field, expected.as_u64()) {
                        expected = json!(mode & !SPECIAL_BITS);
                    }
                    if ours[field] != expected && !may_differ(path, field) {
                        found.push(format!("{path}: {field} is {}, not {expected}", ours[field]));
                    }
                }
            }
            (None, None) => {}
        }
    }
    found.sort();
    found.dedup();
    found
}

#[track_caller]
pub(crate) fn assert_same(what: &str, found: &[String]) {
    let shown: Vec<_> = found.iter().take(40).map(String::as_str).collect();
    assert!(found.is_empty(), "{what}: {} differences\n{}", found.len(), shown.join("\n"));
}

#[test]
fn an_image_of_debian_s_packages_is_what_umoci_and_podman_make_of_it() {
    let registry = Registry::start();
    let ours = ours(&registry, "python:3");
    assert!(ours.len() > 5000, "{} files", ours.len());
    assert!(ours.values().any(|entry| !entry["same_as"].is_null()), "some file has several names");
    assert_same("umoci", &differences(&ours, &umoci(&registry, "python:3"), |_, _| false));
    assert_same("podman", &differences(&ours, &podman(&registry, "python:3"), |_, _| false));
}

/// Everything that a layer can do to those below it.
pub(crate) fn stacked() -> Image {
    let owned = |tar: &mut support::image::Tar, path: &str, mode: u32, owner: (u64, u64)| {
        tar.entry(EntryType::Regular, path, mode, owner, path.as_bytes());
    };
    let base = Layer::build(|tar| {
        for folder in ["kept", "emptied", "replaced", "turned", "deep", "deep/er", "implied"] {
            tar.dir(folder);
        }
        tar.entry(EntryType::Directory, "open", 0o1777, (0, 0), b"");
        tar.entry(EntryType::Directory, "owned", 0o750, (1000, 1001), b"");
        owned(tar, "kept/file", 0o640, (7, 8));
        owned(tar, "kept/gone", 0o644, (0, 0));
        owned(tar, "emptied/gone", 0o644, (0, 0));
        owned(tar, "replaced/old", 0o644, (0, 0));
        owned(tar, "turned/inside", 0o644, (0, 0));
        owned(tar, "deep/er/still", 0o600, (65_534, 65_534));
        owned(tar, "setuid", 0o6755, (0, 0));
        tar.file("twice", "1").hard_link("again", "twice").hard_link("deep/once-more", "twice");
        tar.symlink("link", "kept/file").symlink("dangling", "/nowhere").symlink("to-folder", "kept");
        tar.entry(EntryType::Fifo, "pipe", 0o600, (0, 0), b"");
        tar.device(EntryType::Char, "null", 1, 3);
        tar.long_file(&format!("deep/{}", "long-name-".repeat(20)), "");
        tar.long_file(&format!("deep/{}file", "long/".repeat(30)), "at the end of a long way");
    });
    let middle = Layer::build(|tar| {
        tar.dir("kept").whiteout("kept/gone").whiteout("deep/er");
        tar.dir("emptied").opaque("emptied").file("emptied/new", "new");
        tar.whiteout("replaced").whiteout("link");
        tar.file("kept/../kept/dots", "inside").file("./dot", "here").file("/absolute", "here too");
    });
    let top = Layer::build(|tar| {
        tar.file("replaced", "a file where a folder was");
        tar.whiteout("turned").symlink("turned-link", "kept");
        tar.dir("link").file("link/inside", "a folder where a link was");
        tar.file("open/implied", "its folder is not described here")
            .file("owned/implied", "nor is this one's");
        tar.file("own", "x").hard_link("own-link", "own");
    });
    Image::new([base, middle, top])
}

#[test]
fn layers_that_change_each_other_end_as_umoci_and_podman_have_them() {
    let registry = Registry::empty();
    registry.push("stacked", "1", &stacked());
    let ours = ours(&registry, "stacked:1");
    assert_eq!(ours["open"]["mode"], 0o1777, "described two layers below");
    assert_eq!((ours["owned"]["uid"].as_u64(), ours["owned"]["mode"].as_u64()), (Some(1000), Some(0o750)));
    assert!(!ours.contains_key("null") && ours["setuid"]["mode"] == 0o755);
    assert_same("umoci", &differences(&ours, &umoci(&registry, "stacked:1"), retimed));
    let implied = |path: &str, field: &str| {
        let linked = ["twice", "again", "deep/once-more", "own", "own-link"].contains(&path);
        retimed(path, field)
            || (["open", "owned"].contains(&path) && ["mode", "uid", "gid"].contains(&field))
            || (linked && field == "mode")
    };
    assert_same("podman", &differences(&ours, &podman(&registry, "stacked:1"), implied));
}

/// What of `stacked` has other times where others unpack it.
pub(crate) fn retimed(path: &str, field: &str) -> bool {
    let changed = ["deep", "open", "owned", "link", "emptied", "kept"].contains(&path);
    field == "mtime" && (changed || undescribed(path))
}

/// Directories of `stacked` that no layer describes are as old as the pull.
pub(crate) fn undescribed(path: &str) -> bool {
    path.starts_with("deep/long") && !path.ends_with("file")
}

/// An index in an index, the same layer twice, layers with nothing in them, and as many as there may be.
#[test]
fn images_of_unusual_make_are_what_they_should_be() {
    let registry = Registry::start();
    let folder = "x".repeat(3);
    let mut many = Image::busybox();
    for at in 0..126 {
        many = many.layer(Layer::build(|tar| {
            tar.file(&format!("{folder}-{at}"), at.to_string()).file("last", at.to_string());
        }));
    }
    registry.push("many", "1", &many);
    let same = Layer::build(|tar| {
        tar.file("same", "1");
    });
    let other = Layer::build(|tar| {
        tar.whiteout("same").file("other", "2");
    });
    let empty = Layer::build(|_| {});
    let odd = Image::busybox().layer(same.clone()).layer(empty.clone()).layer(other).layer(same).layer(empty);
    registry.push("odd", "1", &odd);
    let small = Layer::build(|tar| {
        for at in 0..100_000 {
            tar.file(&format!("small/{}/{at}", at % 100), "x");
        }
    });
    registry.push("small", "1", &Image::busybox().layer(small));
    let inner = registry.push_index(
        "nested",
        "inner",
        &[Image::busybox().layer(Layer::build(|tar| {
            tar.file("nested", "3");
        }))],
    );
    registry.nest_index("nested", "1", &inner);
    let daemon = Daemon::with_registry(&registry);
    for (image, script, expected) in [
        ("many:1", "ls / | grep -c xxx; cat /last", "126\n125"),
        ("odd:1", "cat /same /other", "12"),
        ("small:1", "find /small -type f | wc -l", "100000\n"),
        ("nested:1", "cat /nested", "3"),
    ] {
        let body = json!({ "image": registry.image(image), "cmd": "sh", "args": ["-c", script] });
        let run =
            daemon.request("POST", "/runs").json(&body).patience(std::time::Duration::from_secs(120)).send();
        assert_eq!(run.expect(200)["stdout"], expected, "{image}");
    }
    // What images share is there once, and what several names mean is one image.
    let listed = daemon.get("/images").expect(200);
    let shared = listed["disk_bytes"].as_u64().expect("a number");
    let on_disk = support::disk_bytes(&daemon.data_dir().join("layers"));
    assert!(on_disk.abs_diff(shared) < shared / 50 + (4 << 20), "said {shared}, found {on_disk}");
}
