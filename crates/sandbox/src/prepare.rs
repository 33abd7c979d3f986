//! The outer half of a sandbox, from nothing to one that waits for its command: a cgroup, an init in
//! namespaces of its own, the ids, the file systems. All of it that doesn't depend on what will run is
//! made ahead of need.

use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::unistd::{Pid, Uid, setresuid};
use run::Limits;

use crate::cgroup::RunGroup;
use crate::host;
use crate::init::{self, Build, Ends};
use crate::keeper::Ground;
use crate::protocol::{Outline, Rootfs};
use crate::rootfs::{self, LayerMode, Scratch};
use crate::step::{At, Failure};
use crate::{dir, packet, store, sys};

/// What a run has to itself. The cgroup namespace comes later, from inside the cgroup.
const NAMESPACES: [(&str, i32); 6] = [
    ("user_namespace", libc::CLONE_NEWUSER),
    ("mount_namespace", libc::CLONE_NEWNS),
    ("pid_namespace", libc::CLONE_NEWPID),
    ("network_namespace", libc::CLONE_NEWNET),
    ("ipc_namespace", libc::CLONE_NEWIPC),
    ("uts_namespace", libc::CLONE_NEWUTS),
];

/// A cloned init, and how to talk to it and to the command that it forks.
pub(crate) struct Init {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) sync: OwnedFd,
    pub(crate) launch: OwnedFd,
}

/// A sandbox's cgroup and what it is prepared for: enough to end whatever is in it.
pub(crate) struct Outer<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) outline: &'a Outline,
    /// Root inside the run, seen from outside.
    pub(crate) owner: u32,
    pub(crate) group: RunGroup<'a>,
    pub(crate) oom: Option<EventFd>,
}

/// What is mounted, or will be, when the layers are known.
pub(crate) struct Inner {
    pub(crate) scratch: Scratch,
    userns: OwnedFd,
    /// While this is open, init's end doesn't have to wait until everything is unmounted.
    mounts: Option<OwnedFd>,
    dev: OwnedFd,
    /// The root, once there is one: files are fetched from it when the run is over.
    pub(crate) root: Option<OwnedFd>,
}

impl Inner {
    /// Takes everything away from the root that was mounted on it: what is left is the run's own files.
    pub(crate) fn unmount(&mut self) {
        self.mounts = None;
    }
}

impl<'a> Outer<'a> {
    pub(crate) fn create(ground: &'a Ground, slot: u32, outline: &'a Outline) -> Result<Self, Failure> {
        let group = RunGroup::create(&ground.cgroups, &format!("r{slot}"), &outline.limits)?;
        let oom = if outline.stands("oom_kill_all") { group.oom_event() } else { None };
        Ok(Self { ground, outline, owner: ground.id_base + slot * ground.id_width, group, oom })
    }

    /// `control` stays the keeper's alone: the server must see its end when it dies.
    pub(crate) fn clone_init(&self, control: &OwnedFd) -> Result<Init, Failure> {
        let (sync, their_sync) = packet::pair().at("make sync socket")?;
        let (launch, their_launch) = packet::pair().at("make launch socket")?;
        let wanted = NAMESPACES.iter().filter(|(name, _)| self.outline.stands(name));
        let namespaces = wanted.fold(0, |flags, (_, flag)| flags | flag);
        let tasks = self.group.tasks().at("open cgroups")?;
        let apart = namespaces & libc::CLONE_NEWUSER != 0 && self.outline.stands("quotas");
        if apart {
            self.act_as_owner().at("act as the run's owner")?;
        }
        let cloned = match sys::clone3(namespaces as u64, self.group.clone_target()) {
            Ok(None) => {
                drop((sync, launch));
                sys::close_for_good(control.as_fd());
                let ends = Ends { sync: their_sync, launch: their_launch, tasks };
                init::main(self.outline, self.ground.id_width, ends)
            }
            Ok(Some(init)) => Ok(init),
            Err(errno) => Err(errno),
        };
        if apart {
            set_effective_user(0).at("act as root again")?;
        }
        let (pid, pidfd) = cloned.at("clone init")?;
        Ok(Init { pid, pidfd, sync, launch })
    }

    /// What the kernel counts for each user (inotify instances, bytes of message queues, pending signals,
    /// locked memory) it counts for the one who made the user namespace as well. Made by root, the
    /// namespaces of all runs would share what root has, and one run could take it all from every other
    /// and from the host. So the maker is the run's own root, with the rights that root has here.
    fn act_as_owner(&self) -> nix::Result<()> {
        set_effective_user(self.owner)?;
        sys::set_capabilities(self.ground.capabilities)
    }

    /// Everything between clone and the moment in which the layers must be known.
    pub(crate) fn prepare(&self, init: &Init) -> Result<Inner, Failure> {
        let (owner, width) = (self.owner, self.ground.id_width);
        let process = dir::open_dir(format!("/proc/{}", init.pid).as_ref()).at("open init's proc")?;
        // When memory runs out the run's processes go before anybody else's.
        dir::write(&process, "oom_score_adj", "1000").at("set oom score")?;
        if self.outline.stands("user_namespace") {
            let map = format!("0 {owner} {width}");
            dir::write(&process, "uid_map", &map).at("map users")?;
            dir::write(&process, "gid_map", &map).at("map groups")?;
        }
        packet::send(init.sync.as_fd(), &(), &[]).at("let init begin")?;
        let scratch = Scratch::create(&self.outline.limits, owner)?;
        let dev = rootfs::devices(self.ground.devices.as_fd())?;
        let [userns, mounts] = init::receive_namespaces(init.sync.as_fd())?;
        Ok(Inner { scratch, userns, mounts: Some(mounts), dev, root: None })
    }

    /// Puts the root together and hands it to init, which enters it and forks what becomes the command.
    pub(crate) fn give_root(
        &self,
        init: &Init,
        inner: &mut Inner,
        rootfs: &Rootfs,
        over: Option<&String>,
    ) -> Result<(), Failure> {
        if inner.root.is_some() {
            return Ok(());
        }
        let (root, extra) = self.mount(inner, rootfs, over)?;
        let shm = inner.scratch.shm()?;
        let mut fds = vec![root.as_fd(), inner.dev.as_fd(), shm.as_fd()];
        fds.extend(extra.iter().map(|(_, tree)| tree.as_fd()));
        let names = extra.iter().map(|(name, _)| name.clone()).collect();
        packet::send(init.sync.as_fd(), &Build { extra: names }, &fds).at("tell init what to build")?;
        inner.root = Some(root);
        Ok(())
    }

    /// What is cloned from the launcher's mounts comes first: a keeper that has to attach mounts leaves
    /// the launcher's mount namespace for one of its own, from which those can't be cloned any more.
    fn mount(
        &self,
        inner: &Inner,
        rootfs: &Rootfs,
        over: Option<&String>,
    ) -> Result<(OwnedFd, Vec<(String, OwnedFd)>), Failure> {
        let (ground, scratch, owner) = (self.ground, &inner.scratch, self.owner);
        let mapped =
            (ground.map_ids && self.outline.stands("user_namespace")).then_some(inner.userns.as_fd());
        let (mut lowers, mut open) = (Vec::new(), Vec::new());
        let mut layers = match (rootfs, &ground.host) {
            // An overlay wants something below, also for an image that has nothing.
            (Rootfs::Layers(names), _) if names.is_empty() => {
                vec![rootfs::tmpfs(4096, 2, sys::MOUNT_ATTR_RDONLY).at("mount empty layer")?]
            }
            (Rootfs::Layers(names), _) => {
                let views = store::views(&ground.layers, names, mapped, ground.layer_mode, &mut open)?;
                if mapped.is_none() {
                    host::own_folders(&views, scratch, owner).at("make directories of its own")?;
                }
                views
            }
            (Rootfs::Host, None) => {
                return Err(Failure::new("open host image", "the image \"host\" is not offered here"));
            }
            (Rootfs::Host, Some(host)) => {
                for (name, dir) in &host.dirs {
                    let dir = rootfs::view(dir.as_fd(), None).at("clone host directory")?;
                    let empty = rootfs::view(host.empty.as_fd(), None).at("clone empty directory")?;
                    lowers.push((name.clone(), [dir, empty]));
                }
                vec![host.skeleton(mapped, scratch, owner)?]
            }
        };
        if let Some(frozen) = over {
            let frozen = std::slice::from_ref(frozen);
            layers.splice(0..0, store::views(&ground.layers, frozen, mapped, ground.layer_mode, &mut open)?);
        }
        if ground.layer_mode == LayerMode::Attached {
            enter_own_mounts()?;
        }
        let mut extra = Vec::new();
        for (name, lowers) in lowers {
            extra.push((name, rootfs::overlay(ground.layer_mode, &lowers, None)?));
        }
        let root = rootfs::overlay(ground.layer_mode, &layers, Some(scratch))?;
        #[cfg(feature = "removable-walls")]
        if !self.outline.stands("nosuid") {
            sys::mount_clear(root.as_fd(), sys::MOUNT_ATTR_NOSUID).at("allow setuid")?;
        }
        Ok((root, extra))
    }

    /// Sets the limits that the run has and the sandbox was not prepared for.
    pub(crate) fn adjust(&self, inner: &Inner, limits: &Limits) -> Result<(), Failure> {
        if !walls::stands("sandbox_limits") {
            return Ok(());
        }
        self.group.change(&self.outline.limits, limits).at("set cgroup limits")?;
        inner.scratch.resize(&self.outline.limits, limits).at("resize scratch tmpfs")
    }

    /// Kills everything and waits until it is dead. PID 1's death ends its namespace, and it is reaped
    /// only after everything in it is gone.
    pub(crate) fn end(&self, init: &Init) {
        if self.outline.stands("cgroup_kill") {
            self.group.kill();
        }
        Self::reap(init);
    }

    /// The same where init ends by itself: its own end is enough, and quicker.
    pub(crate) fn reap(init: &Init) {
        let _ = sys::pidfd_kill(init.pidfd.as_fd());
        while let Err(nix::errno::Errno::EINTR) = sys::wait(Some(init.pid), true) {}
    }
}

/// Leaves the real and the saved user as they are: the way back, on which effective capabilities come
/// back by themselves.
fn set_effective_user(uid: u32) -> nix::Result<()> {
    let same = Uid::from_raw(u32::MAX);
    setresuid(same, Uid::from_raw(uid), same)
}

/// Only where layers have to be attached: nothing of it may be seen by the launcher or other keepers.
fn enter_own_mounts() -> Result<(), Failure> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).at("new mount namespace for the keeper")?;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .at("make the keeper's mounts private")
}
