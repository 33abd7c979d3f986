//! One run after the other: none finds a trace of an earlier one, and no image is changed by being run.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use support::{Daemon, Registry, json};

use crate::{output, sh};

/// Does to every file what a program can do to a file, and leaves some more.
const SPOIL: &str = r#"
cd /
for file in /etc/passwd /etc/group /bin/busybox /bin/sh /home/bob/note /srv /tmp /root /etc/*; do
    [ -e "$file" ] || continue
    chmod 0777 "$file"; chown 1:1 "$file"; touch -t 199901010000 "$file"
    [ -f "$file" ] && echo spoilt >> "$file"
    ln "$file" "$file.link"; mv "$file" "$file.moved"; mv "$file.moved" "$file"
    [ -f "$file" ] && truncate -s 0 "$file"
done 2>/dev/null
mkdir -p /new/folder /var/new; echo new > /new/folder/file; echo new > /tmp/new; echo new > /dev/shm/new
ln -s /etc/shadow /new/link; mkfifo /new/fifo; rm -rf /home /usr/share 2>/dev/null
/bin/echo done 2>/dev/null || echo done
"#;

/// Every file below a folder: its mode, owner, times, and what is in it.
fn picture(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut ask = vec![folder.to_owned()];
    while let Some(path) = ask.pop() {
        let found = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut content = DefaultHasher::new();
        if found.is_dir() {
            ask.extend(std::fs::read_dir(&path).expect("list a folder").flatten().map(|entry| entry.path()));
        } else if found.is_symlink() {
            std::fs::read_link(&path).expect("read a link").hash(&mut content);
        } else if found.is_file() {
            std::fs::read(&path).expect("read a file").hash(&mut content);
        }
        // Reading changes the time of the last access, and nothing else here changes anything.
        let looks = format!(
            "{:o} {} {} {} {} {} {:x}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.nlink(),
            found.mtime_nsec(),
            found.ctime_nsec(),
            content.finish()
        );
        all.insert(path, looks);
    }
    all
}

#[test]
fn no_byte_of_an_image_in_the_store_is_changed_by_a_run() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("busybox");
    daemon.run(&sh(&image, "true"));
    let host = daemon.host();
    let layers = daemon.data_dir().join("layers");
    let before = picture(&layers);
    assert!(before.len() > 50, "the layers are there to be looked at: {}", before.len());
    for user in ["0", "1000:1000"] {
        let mut body = sh(&image, SPOIL);
        body["user"] = json!(user);
        assert!(output(&daemon.run(&body)).ends_with("done"));
    }
    host.assert_unchanged();
    let after = picture(&layers);
    let changed: Vec<_> = before.iter().filter(|(path, looks)| after.get(*path) != Some(looks)).collect();
    assert!(changed.is_empty() && after.len() == before.len(), "{changed:#?}");
}

/// One slot, so that every run gets the ids, the cgroup's name and the place of the one before.
#[test]
fn a_run_finds_no_trace_of_the_one_before_it() {
    let registry = Registry::start();
    let daemon = Daemon::builder().host_image().registry(&registry).flag("--slots", 1).start();
    let busybox = registry.image("busybox");
    let list = "find / -xdev -exec stat -c '%n %a %u %g %s %Y' {} + 2>/dev/null | grep -v '^/proc' | sort";
    for image in [&*busybox, "host"] {
        // The host's own files are too many to list; what a run can write to is not.
        let list = if image == "host" {
            list.replace("find / -xdev", "find / -xdev -path /usr -prune -o")
        } else {
            list.to_owned()
        };
        let look = || output(&daemon.run(&sh(image, &list))).lines().map(str::to_owned).collect::<Vec<_>>();
        // What is made for each run anew is as old as the run.
        let without_times = |lines: Vec<String>| -> Vec<String> {
            let made = ["/ ", "/dev", "/tmp ", "/proc ", "/etc ", "/etc/hosts "];
            let strip = |line: String| match made.iter().any(|name| line.starts_with(name)) {
                true => line.rsplit_once(' ').map(|(rest, _)| rest.to_owned()).unwrap_or_default(),
                false => line,
            };
            lines.into_iter().map(strip).collect()
        };
        let before = without_times(look());
        assert!(before.len() > 20, "{before:?}");
        let host = daemon.host();
        for user in ["0", "1000:1000"] {
            let mut body = sh(image, SPOIL);
            body["user"] = json!(user);
            assert!(output(&daemon.run(&body)).ends_with("done"));
            assert_eq!(without_times(look()), before, "{image} after a run as {user}");
        }
        host.assert_unchanged();
    }
}
