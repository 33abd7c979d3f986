//! The images that most tests use, made once from Debian packages and kept in `target/images`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use crate::{Compression, Image, Layer, Registry, target, tool};

/// To be raised whenever what is made below changes.
const EDITION: &str = "1";

/// The storage of a registry that has the stock images, made if it is not there yet.
pub fn registry() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| make("registry", fill)).clone()
}

/// The storage of a registry that has `toolbox`, a Debian with compilers, interpreters and a database.
pub fn toolbox() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| make("toolbox", fill_toolbox)).clone()
}

fn make(name: &str, fill: fn(&Path)) -> PathBuf {
    let place = target().join("images");
    fs::create_dir_all(&place).expect("make a folder for images");
    let lock = File::create(place.join("lock")).expect("open the images' lock");
    // Whoever comes second waits, and finds it done.
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("lock the images");
    let done = place.join(format!("{name}-{EDITION}"));
    if !done.exists() {
        let half_done = place.join("unfinished");
        let _ = fs::remove_dir_all(&half_done);
        fill(&half_done);
        fs::rename(half_done.join("storage"), &done).expect("keep the images");
        let _ = fs::remove_dir_all(&half_done);
    }
    done
}

fn fill(place: &Path) {
    let storage = place.join("storage");
    fs::create_dir_all(&storage).expect("make a folder for images");
    let registry = Registry::on(&storage);
    for (tag, compression) in
        [("latest", Compression::Gzip), ("zstd", Compression::Zstd), ("plain", Compression::None)]
    {
        registry.push("busybox", tag, &Image::busybox_as(compression));
    }
    let tar = place.join("python.tar");
    bootstrap(&tar, "python3,gcc,libc6-dev");
    let layer =
        Layer::from_file(Compression::Gzip, &tar, &place.join("python.tar.gz")).expect("compress an image");
    let image = Image::new([layer])
        .set(
            "Env",
            json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]),
        )
        .set("Cmd", json!(["python3"]));
    registry.push("python", "3", &image);
}

/// What real programs are made with and made of.
const TOOLBOX: &str = "bash,coreutils,curl,default-jdk-headless,g++,gcc,git,golang-go,iputils-ping,libc6-dev,make,nodejs,perl,\
                       postgresql,procps,python3,python3-numpy,ripgrep,strace,util-linux,xz-utils,zip,unzip";

fn fill_toolbox(place: &Path) {
    let storage = place.join("storage");
    fs::create_dir_all(&storage).expect("make a folder for images");
    let registry = Registry::on(&storage);
    let tar = place.join("toolbox.tar");
    bootstrap(&tar, TOOLBOX);
    let layer = Layer::from_file(Compression::Zstd, &tar, &place.join("toolbox.tar.zst"));
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin";
    let image = Image::new([layer.expect("compress an image")]).set("Env", json!([path, "LANG=C.UTF-8"]));
    registry.push("toolbox", "1", &image);
}

/// The storage of a registry that has what is measured with: `gcc` in five layers, `small` with a hundred
/// thousand small files, `many` with 120 layers, `huge` with one layer of a gigabyte that no compression helps.
pub fn bench() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| make("bench", fill_bench)).clone()
}

const GIGABYTE: u64 = 1 << 30;

fn fill_bench(place: &Path) {
    let storage = place.join("storage");
    fs::create_dir_all(&storage).expect("make a folder for images");
    let registry = Registry::on(&storage);
    let (whole, layer) = (place.join("gcc.tar"), |at: usize| place.join(format!("gcc-{at}.tar")));
    bootstrap(&whole, "python3,gcc,g++,make");
    split(&whole, &[20, 35, 50, 60, 100], layer).expect("split an archive");
    let compressed = |tar: &Path| {
        let into = tar.with_extension("tar.gz");
        Layer::from_file(Compression::Gzip, tar, &into).expect("compress a layer")
    };
    let layers: Vec<_> = (0..5).map(|at| compressed(&layer(at))).collect();
    registry.push("gcc", "1", &Image::new(layers));
    let small = Layer::build(|tar| {
        for at in 0..100_000 {
            tar.file(&format!("small/{}/{at}", at % 100), at.to_string());
        }
    });
    registry.push("small", "1", &Image::new([small]));
    let one = |at: usize| {
        Layer::build(|tar| {
            tar.file(&format!("layers/{at}"), vec![at as u8; 100_000]);
        })
    };
    registry.push("many", "1", &Image::new((0..120).map(one).collect::<Vec<_>>()));
    let huge = place.join("huge.tar");
    noise_archive(&huge).expect("write a gigabyte");
    registry.push("huge", "1", &Image::new([compressed(&huge)]));
}

/// Deals the members of an archive out to several, by how much of all bytes, in percent, each ends at. A hard link
/// goes where its file went.
fn split(whole: &Path, ends: &[u64], part: impl Fn(usize) -> PathBuf) -> std::io::Result<()> {
    let total = whole.metadata()?.len();
    let part = |at: usize| File::create(part(at)).map(tar::Builder::new);
    let mut parts = (0..ends.len()).map(part).collect::<std::io::Result<Vec<_>>>()?;
    let mut homes = std::collections::HashMap::new();
    let mut archive = tar::Archive::new(std::io::BufReader::new(File::open(whole)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let (path, link) = (entry.path()?.into_owned(), entry.link_name()?.map(std::borrow::Cow::into_owned));
        let by_size = ends.iter().position(|end| entry.raw_header_position() * 100 <= total * end);
        let is_link = entry.header().entry_type() == tar::EntryType::Link;
        let beside = link.as_ref().filter(|_| is_link).and_then(|target| homes.get(target).copied());
        let at = beside.or(by_size).unwrap_or_default();
        let mut header = entry.header().clone();
        match link {
            Some(target) => parts[at].append_link(&mut header, &path, target)?,
            None => parts[at].append_data(&mut header, &path, &mut entry)?,
        }
        homes.insert(path, at);
    }
    parts.iter_mut().try_for_each(tar::Builder::finish)
}

fn noise_archive(path: &Path) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(GIGABYTE);
    header.set_mode(0o644);
    let noise = std::io::Read::take(File::open("/dev/urandom")?, GIGABYTE);
    let mut builder = tar::Builder::new(std::io::BufWriter::new(File::create(path)?));
    builder.append_data(&mut header, "huge", noise)?;
    builder.finish()
}

/// A small Debian with those packages and what they need.
pub fn bootstrap(tar: &Path, packages: &str) {
    let status = debian(packages).arg("bookworm").arg(tar).status().expect("start mmdebstrap");
    assert!(status.success(), "mmdebstrap could not make an image: {status}");
}

/// What makes a small Debian, as far as the suite and where the archive goes.
pub(crate) fn debian(packages: &str) -> Command {
    let mut command = Command::new(tool("mmdebstrap"));
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--format=tar"]);
    command.arg(format!("--include={packages}"));
    // Images bring no device nodes; each run gets its own.
    command.args(["--skip=output/dev,output/mknod"]);
    for part in ["doc", "info", "locale", "man"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{part}/*"));
    }
    // Java's packages link pages of the manual that were left out, and want at least the place.
    command.arg("--essential-hook=mkdir -p \"$1\"/usr/share/man/man1 \"$1\"/usr/share/man/man7");
    command.arg("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/*.bin");
    command.stdin(Stdio::null());
    command
}
