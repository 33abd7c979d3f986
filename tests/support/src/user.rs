//! Somebody who is not root, to whom an administrator has given sub-ids and no control group.

use std::os::unix::fs::chown;
use std::process::Command;

use crate::{Delegated, Finished, Folder, Process, Registry, Service, sandglass, sandglass_launcher, tool};

/// Nobody on the machine has this number.
const USER: u32 = 47_110;

/// In a mount namespace of its own: an `/etc` in which the user is known, and the user itself.
const BECOME: &str = r#"
set -e
mount -t tmpfs tmp /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work overlay /etc
echo "tester:x:$0:$0::/nonexistent:/bin/sh" >> /etc/passwd
echo "tester:x:$0:" >> /etc/group
printf '%s' "$1" > /etc/subuid
printf '%s' "$1" > /etc/subgid
umount --lazy /mnt
for door in $2; do echo $$ > "$door"; done
shift 2
exec setpriv --reuid "$0" --regid "$0" --clear-groups "$@"
"#;

/// As many as a run wants.
pub const SUB_IDS: &str = "tester:300000:65536\n";

/// What the walls and limits are called for which a control group would be needed.
pub const DEGRADED: &str =
    "--allow-degraded=cgroup_memory,cgroup_pids,cgroup_cpu,memory_bytes,processes,cpus,cpu_time_ms";

/// Somebody's programs and data.
#[derive(Debug)]
pub struct User(Folder);

impl User {
    pub fn new() -> Self {
        let folder = Folder::new();
        for program in [sandglass(), sandglass_launcher()] {
            let name = program.file_name().expect("a program has a name");
            std::fs::copy(&program, folder.join(name)).expect("copy a program");
        }
        let data = folder.join("data");
        std::fs::create_dir(&data).expect("make a folder");
        chown(&data, Some(USER), Some(USER)).expect("give a folder away");
        Self(folder)
    }

    /// `sandglass WORDS…` as that user, whose sub-ids are the lines given.
    pub fn command(&self, sub_ids: &str, words: &[&str]) -> Command {
        self.command_in(None, sub_ids, words)
    }

    fn command_in(&self, group: Option<&Delegated>, sub_ids: &str, words: &[&str]) -> Command {
        let doors = group.into_iter().flat_map(Delegated::doors);
        let doors: Vec<String> = doors.map(|door| door.display().to_string()).collect();
        let mut command = Command::new(tool("unshare"));
        command
            .args(["--mount", "sh", "-c", BECOME, &USER.to_string(), sub_ids, &doors.join(" ")])
            .arg(self.0.join("sandglass"));
        command.args(words).env("SANDGLASS_DATA_DIR", self.0.join("data")).env("SANDGLASS_DOCKER_CONFIG", "");
        command
    }

    pub fn finished(&self, sub_ids: &str, words: &[&str]) -> Finished {
        Finished::of(&mut self.command(sub_ids, words))
    }

    /// A service without control groups, which may pull from `registry`.
    #[track_caller]
    pub fn serve(&self, registry: &Registry) -> Service {
        let flag = format!("--insecure-registry={}", registry.host());
        let command = self.command(SUB_IDS, &["serve", "--listen=127.0.0.1:0", DEGRADED, &flag]);
        Service::wait_for(Process::start("sandglass serve", command))
    }

    /// A service that lives in that control group and has to do without nothing that it can give.
    #[track_caller]
    pub fn serve_in(&self, group: &Delegated, words: &[&str]) -> Service {
        let words = [&["serve", "--listen=127.0.0.1:0"], words].concat();
        let command = self.command_in(Some(group), SUB_IDS, &words);
        Service::wait_for(Process::start("sandglass serve", command))
    }

    /// Its number on this machine.
    pub fn id(&self) -> u32 {
        USER
    }

    pub fn data_dir(&self) -> std::path::PathBuf {
        self.0.join("data")
    }
}

impl Default for User {
    fn default() -> Self {
        Self::new()
    }
}
