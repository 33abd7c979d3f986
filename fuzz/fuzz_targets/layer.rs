//! A layer of an image: whatever its bytes are, files are made below its root and nowhere else.
#![no_main]

use std::fs;
use std::io::Cursor;
use std::os::fd::OwnedFd;
use std::path::Path;

use libfuzzer_sys::fuzz_target;

/// Beside the root of each layer, where every way out would lead first.
const SENTINEL: &str = "beside";

fuzz_target!(|bytes: &[u8]| {
    let place = tempfile::tempdir_in("/dev/shm").expect("make a folder");
    let root = place.path().join("root");
    fs::create_dir(&root).expect("make a root");
    fs::write(place.path().join(SENTINEL), "untouched").expect("write a sentinel");
    let limits = unpack::Limits { bytes: 1 << 20, entries: 200, ..unpack::Limits::default() };
    // The digest of nothing; only an empty archive has it, which is why every other fails at its end.
    let diff_id = format!("sha256:{}", "0".repeat(64));
    let job = unpack::Job { diff_id, limits, niceness: 0 };
    let opened = |root: &Path| OwnedFd::from(fs::File::open(root).expect("open a root"));
    let result = unpack::layer(bytes, opened(&root), &job, &mut |_directory| Ok(()));
    assert!(result.is_err(), "nothing hashes to zeros: {result:?}");
    // The same is told of it where another thread decodes it.
    let (input, again) =
        (Cursor::new(bytes.to_vec()), tempfile::tempdir_in("/dev/shm").expect("make a folder"));
    let ahead = unpack::layer_ahead(input, opened(again.path()), &job, 0, &mut |_directory| Ok(()));
    assert_eq!(ahead, result);
    let mut there: Vec<_> =
        fs::read_dir(place.path()).expect("list the folder").flatten().map(|e| e.file_name()).collect();
    there.sort();
    assert_eq!(there, [SENTINEL, "root"]);
    assert_eq!(fs::read_to_string(place.path().join(SENTINEL)).expect("read the sentinel"), "untouched");
    plain(&root);
});

/// No file runs as somebody else, and there are no devices but whiteouts.
fn plain(folder: &Path) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let metadata = entry.metadata().expect("look at a file");
        assert_eq!(metadata.mode() & 0o6000, 0, "{entry:?}");
        assert!(!metadata.file_type().is_block_device(), "{entry:?}");
        assert!(!metadata.file_type().is_char_device() || metadata.rdev() == 0, "{entry:?}");
        if metadata.is_dir() {
            plain(&entry.path());
        }
    }
}
