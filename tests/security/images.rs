//! Category G, what is inside images: layers that would write, link, chmod or delete outside themselves,
//! pretend to be something else, or never end. What registries do is in `registries.rs`; every rule of the
//! unpacker by itself, G-22 and the count of entries, where `crates/unpack` has its tests.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::image::{EntryType, Tar};
use support::{Compression, Daemon, Folder, Host, Image, Layer, Registry, Value, json};

/// A registry, a server that pulls from it, and a place outside that every attack would like to reach.
struct World {
    registry: Registry,
    daemon: Daemon,
    outside: Folder,
    host: Host,
}

impl World {
    fn new() -> Self {
        let registry = Registry::start();
        let daemon = Daemon::with_registry(&registry);
        let outside = Folder::new();
        fs::write(outside.join("canary"), "untouched").expect("write a canary");
        daemon.run(&json!({ "image": registry.image("busybox"), "cmd": "true" }));
        let host = daemon.host();
        Self { registry, daemon, outside, host }
    }

    fn canary(&self) -> PathBuf {
        self.outside.join("canary")
    }

    fn door(&self) -> String {
        self.outside.path().display().to_string()
    }

    /// What a shell says inside an image of busybox and that layer; nothing where the image was refused.
    #[track_caller]
    fn seen(&self, id: &str, layer: Layer, script: &str) -> Option<String> {
        let started = Instant::now();
        let name = id.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        self.registry.push(&name, "1", &Image::busybox().layer(layer));
        let request = json!({
            "image": self.registry.image(&format!("{name}:1")), "cmd": "sh", "args": ["-c", script],
        });
        let response =
            self.daemon.request("POST", "/runs").json(&request).patience(Duration::from_secs(120)).send();
        let seen = match response.status {
            200 => {
                let run = response.json();
                assert!(
                    ["exited", "start_failed"].contains(&run["outcome"].as_str().expect("text")),
                    "{id}: {run:#}"
                );
                Some(run["stdout"].as_str().expect("text").trim().to_owned())
            }
            _ => {
                let problem: Value = response.json();
                let kind = problem["type"].as_str().unwrap_or_default().to_owned();
                assert!(
                    ["/problems/bad-image", "/problems/image-too-large"].contains(&&*kind),
                    "{id}: {problem:#}"
                );
                let listed = self.daemon.get("/images").text();
                assert!(!listed.contains(&format!("/{name}:1")), "{id} was refused and is listed: {listed}");
                None
            }
        };
        self.assert_untouched(id);
        assert!(started.elapsed() < Duration::from_secs(60), "{id} took {:?}", started.elapsed());
        seen
    }

    #[track_caller]
    fn assert_untouched(&self, id: &str) {
        let canary = self.canary().metadata().unwrap_or_else(|error| panic!("{id}: the canary: {error}"));
        let text = fs::read_to_string(self.canary()).expect("read the canary");
        assert_eq!((text.as_str(), canary.nlink()), ("untouched", 1), "{id}");
        let folder = self.outside.path().metadata().expect("look at the folder");
        assert_eq!(folder.mode() & 0o7777, 0o755, "{id} changed a mode outside");
        assert_eq!(self.outside.path().read_dir().expect("list").count(), 1, "{id} made something outside");
        for name in ["evil", "canary"] {
            assert!(
                !self.daemon.data_dir().join("layers").join(name).exists(),
                "{id}: written into the store"
            );
            assert!(!PathBuf::from("/").join(name).exists(), "{id}: written into the host's root");
        }
    }

    /// After all of them: the server works, has not grown, and has left nothing.
    #[track_caller]
    fn assert_well(&self) {
        let run = self
            .daemon
            .run(&json!({ "image": self.registry.image("busybox"), "cmd": "echo", "args": ["ok"] }));
        assert_eq!(run["stdout"], "ok\n");
        self.host.assert_unchanged();
        assert!(!self.daemon.log().contains("panicked"), "{}", self.daemon.log());
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).expect("read its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its most memory");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(kib < 300 << 10, "the server has held {kib} KiB");
    }
}

fn layer(fill: impl for<'a> FnOnce(&'a mut Tar) -> &'a mut Tar) -> Layer {
    Layer::build(|tar| {
        fill(tar);
    })
}

/// Puts the entries of an attack into a layer.
type Fill<'l> = dyn for<'a> Fn(&'a mut Tar) -> &'a mut Tar + 'l;

const LOOK: &str = "ls -d /evil /canary /srv/evil 2>/dev/null; true";

#[test]
fn g_01_to_05_no_name_and_no_link_of_a_layer_leads_out() {
    let world = World::new();
    let (door, canary) = (world.door(), world.canary().display().to_string());
    let up = "../".repeat(12);
    for (number, name) in [
        format!("{up}{canary}"),
        canary.clone(),
        format!("a/../../{up}{canary}"),
        format!("./../{up}evil"),
        "../evil".into(),
    ]
    .iter()
    .enumerate()
    {
        world.seen(&format!("G-01 name {number}"), layer(|tar| tar.file(name, "evil")), LOOK);
    }
    let through = |id: &str, fill: &Fill<'_>| world.seen(id, layer(fill), LOOK);
    through("G-02 link", &|tar| tar.symlink("d", &door).file("d/canary", "evil").file("d/evil", "evil"));
    through("G-02 root", &|tar| tar.symlink("d", "/").file("d/evil", "evil"));
    through("G-02 up", &|tar| tar.symlink("d", &format!("{up}{door}")).file("d/evil", "evil"));
    through("G-02 store", &|tar| tar.symlink("d", "/layers").file("d/evil", "evil"));
    through("G-02 proc", &|tar| tar.symlink("d", "/proc/self/cwd").file("d/evil", "evil"));
    through("G-02 chain", &|tar| {
        (0..40).for_each(|n| {
            tar.symlink(&format!("l{n}"), &format!("l{}", n + 1));
        });
        tar.symlink("l40", &door).file("l0/canary", "evil")
    });
    through("G-02 loop", &|tar| tar.symlink("x", "y").symlink("y", "x").file("x/evil", "evil"));
    for (number, target) in
        [canary.as_str(), &format!("{up}{canary}"), "d/canary", "x", "nothing", ".wh.x", "bin", "/etc/passwd"]
            .iter()
            .enumerate()
    {
        through(&format!("G-03 hard link {number}"), &|tar| {
            tar.symlink("d", &door).hard_link("x", target).file("x", "evil");
            tar.hard_link("y", target)
        });
    }
    through("G-04 link over link", &|tar| {
        tar.symlink("a", &door)
            .symlink("b", "a")
            .hard_link("c", "b")
            .file("c/evil", "evil")
            .file("b/canary", "evil")
    });
    through("G-04 folder over link", &|tar| tar.symlink("d", &door).dir("d").file("d/evil", "evil"));
    through("G-05 mode", &|tar| {
        tar.symlink("d", &door).entry(EntryType::Directory, "d", 0o777, (0, 0), b"");
        tar.symlink("e", &door).entry(EntryType::Directory, "e/.", 0o777, (1000, 1000), b"")
    });
    world.assert_well();
}

#[test]
fn g_06_and_10_what_is_inside_a_file_is_no_entry_and_a_root_is_a_directory() {
    let world = World::new();
    // A file whose length stands in front of it twice, differently, and in which another archive lies.
    let inner = {
        let evil = layer(|tar| tar.file("evil", "evil"));
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate(&evil.blob.bytes()), &mut plain).expect("inflate");
        plain
    };
    let record = |text: &str| {
        let mut length = text.len() + 3;
        while format!("{length} {text}\n").len() != length {
            length += 1;
        }
        format!("{length} {text}\n")
    };
    for (id, size) in [("G-06 true length in front", inner.len()), ("G-06 no length in front", 0)] {
        let outer = layer(|tar| {
            tar.entry(EntryType::XHeader, "pax", 0o644, (0, 0), record(&format!("size={size}")).as_bytes());
            tar.entry(EntryType::Regular, "outer", 0o644, (0, 0), &inner)
        });
        // As every reader of such archives has it: what stands in front of the header counts.
        let expected = if size == 0 { "/evil\n0".to_owned() } else { size.to_string() };
        let seen = world.seen(id, outer, "ls /evil 2>/dev/null; wc -c < /outer");
        assert!(seen.is_none() || seen == Some(expected), "{id}: {seen:?}");
    }
    for (id, fill) in [
        ("G-10 link", (|tar: &mut Tar| tar.symlink("./", "/")) as fn(&mut Tar) -> &mut Tar),
        ("G-10 file", |tar| tar.file(".", "evil")),
        ("G-10 hard link", |tar| tar.hard_link("./", "/etc")),
        ("G-10 device", |tar| tar.device(EntryType::Block, ".", 8, 0)),
    ] {
        if let Some(seen) = world.seen(id, layer(fill), "ls -d / && id -u") {
            assert_eq!(seen, "/\n0", "{id}");
        }
    }
    world.assert_well();
}

fn flate(gzip: &[u8]) -> impl std::io::Read {
    let mut child = std::process::Command::new(support::tool("gzip"))
        .args(["--decompress", "--stdout"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start gzip");
    std::io::Write::write_all(&mut child.stdin.take().expect("an input"), gzip).expect("feed gzip");
    let output = child.wait_with_output().expect("wait for gzip");
    std::io::Cursor::new(output.stdout)
}

#[test]
fn g_07_and_08_devices_and_dangerous_bits_are_taken_off() {
    let world = World::new();
    let evil = layer(|tar| {
        tar.device(EntryType::Block, "srv/disk", 8, 0).device(EntryType::Char, "srv/mem", 1, 1);
        // The mark by which an overlay hides a file: made by the image it must hide nothing.
        tar.device(EntryType::Char, "etc/passwd", 0, 0);
        tar.entry(EntryType::Fifo, "srv/fifo", 0o644, (0, 0), b"");
        tar.entry(EntryType::Regular, "srv/su", 0o6755, (0, 0), b"#!/bin/sh\nid -u");
        tar.entry(EntryType::Directory, "srv/shared", 0o7777, (0, 0), b"")
    });
    let script = "ls /srv | tr '\\n' ' '; test -p /srv/fifo && echo fifo; wc -l < /etc/passwd; \
                  find / -xdev -perm /6000 -type f; stat -c %a /srv/su";
    let seen = world.seen("G-07 devices", evil, script).expect("such images are common");
    assert_eq!(seen, "fifo shared su fifo\n2\n755");
    world.assert_well();
}

#[test]
fn g_09_whiteouts_hide_what_is_below_and_nothing_else() {
    let world = World::new();
    let door = world.door();
    for (number, name) in
        [".wh..", ".wh...", ".wh.", ".wh./x", "srv/.wh..", "srv/.wh...", ".wh.../canary", "srv/.wh./../../x"]
            .iter()
            .enumerate()
    {
        let id = format!("G-09 name {number}");
        if let Some(seen) = world.seen(&id, layer(|tar| tar.file(name, "")), "ls -d /bin /etc /srv") {
            assert_eq!(seen, "/bin\n/etc\n/srv", "{id}");
        }
    }
    let marks: [(&str, &Fill<'_>); 4] = [
        ("G-09 through a link", &|tar| tar.symlink("d", &door).whiteout("d/canary")),
        ("G-09 all through a link", &|tar| tar.symlink("d", &door).opaque("d")),
        ("G-09 twice", &|tar| tar.opaque("srv").opaque("srv").file("srv/new", "1")),
        ("G-09 and again", &|tar| tar.whiteout("etc/group").file("etc/group", "root:x:0:\n")),
    ];
    for (id, fill) in marks {
        let seen = world.seen(id, layer(fill), "ls /bin/sh");
        assert!(seen.as_deref().is_none_or(|seen| seen == "/bin/sh"), "{id}: {seen:?}");
    }
    let seen = world.seen("G-09 everything", layer(|tar| tar.file(".wh..wh..opq", "")), "true");
    assert!(seen.as_deref().is_none_or(str::is_empty), "a shell that was hidden: {seen:?}");
    world.assert_well();
}

/// G-11: where the sandbox puts its own mounts, an image may have anything.
#[test]
fn g_11_an_image_whose_own_places_are_links_runs_in_the_usual_ones_or_says_why_not() {
    let world = World::new();
    let busybox = fs::read(support::tool("busybox")).expect("read busybox");
    let places = [
        "dev",
        "proc",
        "tmp",
        "etc",
        "sys",
        "dev/null",
        "dev/shm",
        "dev/console",
        "dev/ptmx",
        "etc/passwd",
        "etc/hosts",
        "etc/resolv.conf",
        "etc/hostname",
        "proc/self",
    ];
    for place in places {
        for (what, target) in [
            ("outside", world.door()),
            ("root", "/../../..".to_owned()),
            ("itself", place.rsplit('/').next().expect("a name").to_owned()),
            ("nowhere", "/nothing".to_owned()),
            ("init", "/proc/1/root".to_owned()),
            ("fifo", String::new()),
            ("file", String::new()),
        ] {
            let id = format!("G-11 {place} {what}");
            let layer = layer(|tar| {
                tar.program("busybox", &busybox);
                if let Some((folder, _)) = place.split_once('/') {
                    tar.dir(folder);
                }
                match what {
                    "fifo" => tar.entry(EntryType::Fifo, place, 0o666, (0, 0), b""),
                    "file" => tar.file(place, "text"),
                    _ => tar.symlink(place, &target),
                }
            });
            let name = id.to_lowercase().replace([' ', '/', '.'], "-");
            world.registry.push(&name, "1", &Image::new([layer]));
            let run = world.daemon.post(
                "/runs",
                &json!({
                    "image": world.registry.image(&format!("{name}:1")), "cmd": "/busybox",
                    "args": ["sh", "-c", "/busybox echo fine; /busybox cat /canary 2> /err"],
                }),
            );
            let run = run.expect(200);
            match run["outcome"].as_str().expect("an outcome") {
                "exited" => assert_eq!(run["stdout"], "fine\n", "{id}: {run:#}"),
                other => assert_eq!(other, "start_failed", "{id}: {run:#}"),
            }
            world.assert_untouched(&id);
        }
    }
    world.assert_well();
}

#[test]
fn g_12_and_13_what_never_ends_is_refused_at_its_bound() {
    let world = World::new();
    let refused = |id: &str, layer: Layer| assert_eq!(world.seen(id, layer, "true"), None, "{id}");
    let raw = |media: Compression, bytes: Vec<u8>| {
        let mut layer = Layer::from_tar(media, b"");
        layer.blob = support::image::Blob::new(bytes);
        layer.size = layer.blob.len();
        layer
    };
    // A file of seven gigabytes of nothing: the same compressed stretch again and again.
    let header = Layer::compressed(Compression::None, |tar| {
        tar.file("zeros", "");
    })
    .blob
    .bytes();
    let mut header = header[..512].to_vec();
    header[124..136].copy_from_slice(format!("{:011o}\0", 7_u64 << 30).as_bytes());
    let sum: u32 =
        header[..148].iter().chain(&header[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let zeros = Layer::from_tar(Compression::Gzip, &vec![0; 64 << 20]).blob.bytes();
    let mut bomb = Layer::from_tar(Compression::Gzip, &header).blob.bytes();
    (0..112).for_each(|_| bomb.extend_from_slice(&zeros));
    refused("G-12 gzip bomb", raw(Compression::Gzip, bomb));
    let zeros = Layer::from_tar(Compression::Zstd, &vec![0; 64 << 20]).blob.bytes();
    let mut bomb = Layer::from_tar(Compression::Zstd, &header).blob.bytes();
    (0..112).for_each(|_| bomb.extend_from_slice(&zeros));
    refused("G-12 zstd bomb", raw(Compression::Zstd, bomb));
    // A window of two gigabytes, for a block of one byte.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x09, 0x00, 0x00, b'x'];
    refused("G-12 zstd window", raw(Compression::Zstd, window.to_vec()));
    let empty_frames = Layer::from_tar(Compression::Zstd, b"").blob.bytes().repeat(1_000_000);
    // An archive of nothing is one; what matters is that it takes no time.
    let nothing =
        world.seen("G-12 a million frames of nothing", raw(Compression::Zstd, empty_frames), "true");
    assert!(nothing.is_none_or(|seen| seen.is_empty()));
    let good = layer(|tar| tar.file("a", vec![b'a'; 100_000]));
    let mut longer = good.clone();
    longer.blob = support::image::Blob::new([good.blob.bytes(), b"garbage".repeat(100)].concat());
    longer.size = longer.blob.len();
    refused("G-12 bytes behind the end", longer);
    let mut shorter = good.clone();
    let bytes = good.blob.bytes();
    shorter.blob = support::image::Blob::new(&bytes[..bytes.len() - 20]);
    shorter.size = shorter.blob.len();
    refused("G-12 cut off", shorter);
    refused("G-12 no archive", Layer::from_tar(Compression::Gzip, &b"this is no archive ".repeat(100)));
    refused("G-13 depth", layer(|tar| tar.long_file(&"d/".repeat(5000), "")));
    refused("G-13 a long name", layer(|tar| tar.long_file(&"n".repeat(1 << 20), "")));
    let same = layer(|tar| {
        (0..50_000).for_each(|_| {
            tar.file("same", "x");
        });
        tar
    });
    assert_eq!(world.seen("G-13 one name again and again", same, "ls /same"), Some("/same".to_owned()));
    world.assert_well();
}
