//! Runs the tests of the sandbox on other kernels: Debian's cloud kernels under emulation, with
//! control groups of version 2 only, whatever this machine has. Not a part of CI: emulation is slow.

mod suites;
pub(crate) mod systemd;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, packages};

const PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "cpio", "e2fsprogs", "mmdebstrap", "kmod"];

/// The kernels that are promised; of each the newest that the machine's package lists offer.
const KERNELS: &[&str] = &["6.1", "6.12"];

/// What the first few moments need, and tests of full disks; whatever they depend on is found in the kernel's own list.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "overlay", "loop"];

/// What is tested in a machine.
struct Matrix {
    /// Of the disk that is made for it.
    name: &'static str,
    /// Test programs, each with what it is filtered by.
    tests: &'static [(&'static str, &'static str)],
    /// What the machine has from Debian.
    packages: &'static str,
    /// Where its tests put what they make: on a file system that maps ids, unless its absence is what they test.
    temporary: &'static str,
    /// A dead machine is found after this.
    seconds: u32,
}

/// How much longer than elsewhere things may take under emulation.
const TIME_SCALE: u32 = 10;

const SANDBOX: Matrix = Matrix {
    name: "root",
    tests: TESTS,
    packages: "python3,iproute2,procps,uidmap",
    temporary: "/tmp",
    seconds: 4500,
};

const TESTS: &[(&str, &str)] = &[
    // The machine has no registry; what is tested there is the kernel.
    (
        "isolation",
        "--skip an_image_s --skip a_setuid --skip nothing_that_a_run_offers --skip the_same_walls --skip traces::",
    ),
    (
        "security",
        "--skip images:: --skip registries:: --skip api:: --skip modes:: --skip an_image_s --skip no_spelling \
         --skip our_own_program --skip who_unpacks",
    ),
    ("limits", "--skip processors --skip wall_time --skip cpu_time --skip the_smallest_value"),
    ("crash", "--skip a_pull_under_way --skip a_store_whose"),
    // It sets the clock, and so can be run nowhere else.
    ("clock", ""),
    // Here a user can be given control groups of version 2 with controllers, whatever this machine has.
    ("rootless", "with_a_control_group"),
];

/// The same on a kernel that lacks something.
const DEGRADED: &[(&str, &str)] = &[("degraded", "")];

/// The tests of the sandbox, also where the kernel lacks something.
pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    run(words, &SANDBOX, &[(TESTS.to_vec(), ""), (DEGRADED.to_vec(), "cgroup_disable=memory")])
}

/// The black-box suites, or those of them that are named.
pub(crate) fn suites(words: &[String]) -> Result<ExitCode> {
    let (kernels, names): (Vec<String>, Vec<String>) =
        words.iter().cloned().partition(|word| KERNELS.contains(&word.as_str()));
    let all = suites::SUITES.tests;
    for name in &names {
        ensure!(all.iter().any(|(test, _)| test == name), "there is no suite {name}");
    }
    let wanted = |test: &str| names.is_empty() || names.iter().any(|name| name == test);
    let tests = all.iter().copied().filter(|(test, _)| wanted(test)).collect();
    run(&kernels, &suites::SUITES, &[(tests, "")])
}

/// Test programs with their filters, and what the kernel is told when they are run.
type Boot = (Vec<(&'static str, &'static str)>, &'static str);

fn run(words: &[String], matrix: &Matrix, boots: &[Boot]) -> Result<ExitCode> {
    ensure!(
        words.iter().all(|word| KERNELS.contains(&word.as_str())),
        "the kernels are {}",
        KERNELS.join(" and ")
    );
    packages::install(PACKAGES)?;
    let place = cargo::target().join("vm");
    std::fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    let disk = disk(&place, matrix, boots)?;
    println!("emulated: everything may take {TIME_SCALE} times as long as elsewhere");
    let mut bad = 0;
    for version in
        KERNELS.iter().filter(|version| words.is_empty() || words.iter().any(|word| word == *version))
    {
        let kernel = Kernel::fetch(&place, version)?;
        let initramfs = kernel.initramfs(&place)?;
        for (tests, option) in boots {
            let results = boot(&kernel, &initramfs, &disk, matrix.seconds, (tests, option))?;
            for (test, _) in tests {
                let line = results.iter().find(|line| line.starts_with(&format!("{test} ")));
                let good = line.is_some_and(|line| line.ends_with(" 0"));
                bad += usize::from(!good);
                println!("{}  {:30} {test}", if good { "ok    " } else { "FAILED" }, kernel.release);
            }
        }
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A small Debian with the test programs, which are static and bring what they need beside them.
fn disk(place: &Path, matrix: &Matrix, boots: &[Boot]) -> Result<PathBuf> {
    let root = debian(place, matrix.name, matrix.packages)?;
    let tests = root.join("t");
    let _ = std::fs::remove_dir_all(&tests);
    std::fs::create_dir_all(tests.join("deps")).context("create a folder for the tests")?;
    let mut names = vec!["--bins"];
    let tested: Vec<&str> = boots.iter().flat_map(|(tests, _)| tests).map(|(test, _)| *test).collect();
    tested.iter().for_each(|test| names.extend(["--test", test]));
    for (name, program) in cargo::build_tests(&names)? {
        let folder = if tested.contains(&name.as_str()) { tests.join("deps") } else { tests.clone() };
        std::fs::copy(&program, folder.join(&name)).with_context(|| format!("copy {}", program.display()))?;
    }
    // The guests are compiled here, where there is a compiler.
    cargo::run(&["test", "--quiet", "--package", "sandglass-test-support", "every_guest"], &[])?;
    let guests = cargo::target().join("guest").display().to_string();
    cargo::call("cp", &["-a", &guests, &tests.display().to_string()])?;
    if matrix.packages.contains("docker-registry") {
        // The images of its registry are made here as well.
        cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;
        let (from, to) = (cargo::target().join("images"), tests.join("images"));
        std::fs::create_dir_all(&to).context("create a folder for images")?;
        let copy = "cp -a \"$0\"/registry-* \"$1\"";
        cargo::call("sh", &["-c", copy, &from.display().to_string(), &to.display().to_string()])?;
    }
    std::fs::write(root.join("go"), go(matrix, boots)).context("write the machine's script")?;
    ext4(&root, &place.join(format!("{}.img", matrix.name)))
}

/// A small Debian in a folder, made anew where it would have other packages.
fn debian(place: &Path, name: &str, packages: &str) -> Result<PathBuf> {
    let root = place.join(name);
    let stamp = place.join(format!("{name}.packages"));
    if std::fs::read_to_string(&stamp).ok().as_deref() == Some(packages) {
        return Ok(root);
    }
    let _ = std::fs::remove_dir_all(&root);
    let (folder, include) = (root.display().to_string(), format!("--include={packages}"));
    let small = ["--quiet", "--mode=root", "--variant=minbase", "--format=directory"];
    let rest = [include.as_str(), "--skip=output/dev,output/mknod", "bookworm", folder.as_str()];
    cargo::call("mmdebstrap", &[&small[..], &rest].concat())?;
    std::fs::write(&stamp, packages).context("note what the disk is made of")?;
    Ok(root)
}

/// A disk with what is in a folder.
fn ext4(root: &Path, image: &Path) -> Result<PathBuf> {
    let _ = std::fs::remove_file(image);
    let (image_text, root_text) = (image.display().to_string(), root.display().to_string());
    cargo::call("mke2fs", &["-q", "-t", "ext4", "-d", &root_text, &image_text, "3G"])?;
    Ok(image.to_owned())
}

/// What the machine does once it has its disk.
fn go(matrix: &Matrix, boots: &[Boot]) -> String {
    let mut script = format!(
        "export TMPDIR={} SANDGLASS_OWN_MACHINE=1 SANDGLASS_TIME_SCALE={TIME_SCALE}\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=0 SANDGLASS_ATTACKED_IMAGE=host\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup; ip link set lo up; ulimit -n 65536\n",
        matrix.temporary
    );
    for (test, filter) in boots.iter().flat_map(|(tests, _)| tests) {
        script += &format!(
            "grep -q 'tests=.*{test}' /proc/cmdline && {{ timeout 2400 /t/deps/{test} --test-threads=2 {filter} > /tmp/out 2>&1; code=$?\n\
             grep -E -A5 '^test |^[A-Z]-[0-9]|^red |panicked|^assertion|left:|right:' /tmp/out; echo \"VM-RESULT {test} $code\"; }}\n"
        );
    }
    script + "echo o > /proc/sysrq-trigger; sleep 60\n"
}

/// One kernel, unpacked.
struct Kernel {
    release: String,
    folder: PathBuf,
}

impl Kernel {
    fn fetch(place: &Path, version: &str) -> Result<Self> {
        let listed = cargo::output(
            Path::new("apt-cache"),
            &["search", "--names-only", "^linux-image-[0-9].*cloud-amd64$"],
        )?;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let packages = listed.lines().filter_map(|line| line.split(' ').next());
        let matches = packages.filter_map(|package| {
            let release = package.strip_prefix("linux-image-")?;
            let numbers =
                release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
            let wanted = release.strip_prefix(version)?.starts_with('.');
            (wanted && numbers.len() >= 3).then(|| {
                (
                    release.split('-').nth(1).and_then(|part| part.parse::<u32>().ok()),
                    numbers,
                    release.to_owned(),
                )
            })
        });
        let Some((.., release)) = matches.max() else {
            bail!("the package lists have no cloud kernel {version}: is backports among the sources?");
        };
        let folder = place.join(&release);
        if !folder.join("boot").exists() {
            let package = format!("linux-image-{release}");
            eprintln!("$ apt-get download {package}");
            let status =
                Command::new("apt-get").args(["-qq", "download", &package]).current_dir(place).status();
            ensure!(status.context("start apt-get")?.success(), "could not download {package}");
            let entries = std::fs::read_dir(place)?.flatten().map(|entry| entry.path());
            let deb = entries
                .filter(|path| path.extension().is_some_and(|kind| kind == "deb"))
                .find(|path| {
                    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&package))
                })
                .context("apt-get has downloaded nothing")?;
            cargo::call("dpkg-deb", &["-x", &deb.display().to_string(), &folder.display().to_string()])?;
            std::fs::remove_file(deb)?;
            cargo::call("depmod", &["-b", &folder.display().to_string(), &release])?;
        }
        Ok(Self { release, folder })
    }

    fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }

    /// Every module that is needed, after those that it needs itself.
    fn needed(&self) -> Result<Vec<String>> {
        let list = std::fs::read_to_string(self.modules().join("modules.dep")).context("read modules.dep")?;
        let find = |name: &str| {
            list.lines().find_map(|line| {
                let (module, needs) = line.split_once(':')?;
                let stem = module.rsplit('/').next()?.split('.').next()?.replace('-', "_");
                (stem == name).then(|| {
                    (module.to_owned(), needs.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
                })
            })
        };
        let (mut order, mut done) = (Vec::new(), BTreeSet::new());
        for name in MODULES {
            // What is built in is not in the list.
            let Some((module, needs)) = find(name) else { continue };
            for path in needs.into_iter().rev().chain([module]) {
                if done.insert(path.clone()) {
                    order.push(path);
                }
            }
        }
        // Checksums of ext4 are asked for by name.
        if let Some((module, _)) = find("crc32c_generic") {
            order.insert(0, module);
        }
        Ok(order)
    }

    fn initramfs(&self, place: &Path) -> Result<PathBuf> {
        let root = place.join("initramfs");
        let _ = std::fs::remove_dir_all(&root);
        for folder in ["bin", "m", "proc", "dev", "new"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("copy busybox")?;
        let mut script = String::from(
            "#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t proc proc /proc; $B mount -t devtmpfs dev /dev\n",
        );
        for (number, module) in self.needed()?.iter().enumerate() {
            let name = format!("{number}-{}", module.rsplit('/').next().unwrap_or_default());
            std::fs::copy(self.modules().join(module), root.join("m").join(&name))
                .with_context(|| format!("copy {module}"))?;
            script += &format!("$B insmod /m/{name}\n");
        }
        script += "$B mount -t ext4 /dev/vda /new || $B poweroff -f\nexec $B switch_root /new /bin/sh /go\n";
        std::fs::write(root.join("init"), script)?;
        std::fs::set_permissions(root.join("init"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let image = place.join("initramfs.gz");
        let pack = format!(
            "cd '{}' && find . | cpio --quiet -o -H newc | gzip -1 > '{}'",
            root.display(),
            image.display()
        );
        cargo::call("sh", &["-c", &pack])?;
        Ok(image)
    }
}

/// Boots, shows what the machine says, and returns its results.
fn boot(
    kernel: &Kernel,
    initramfs: &Path,
    disk: &Path,
    seconds: u32,
    (tests, option): (&[(&str, &str)], &str),
) -> Result<Vec<String>> {
    let tests: Vec<&str> = tests.iter().map(|(test, _)| *test).collect();
    eprintln!("$ qemu-system-x86_64 … {}", kernel.release);
    let image = kernel.folder.join("boot").join(format!("vmlinuz-{}", kernel.release));
    let mut machine = Command::new("timeout");
    machine
        .arg(seconds.to_string())
        .args([
            "qemu-system-x86_64",
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "3G",
        ])
        .args(["-nographic", "-no-reboot", "-nic", "none", "-append"])
        .arg(format!("console=ttyS0 quiet edd=off panic=-1 lsm=landlock {option} tests={}", tests.join(",")))
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,snapshot=on", disk.display()));
    let mut machine = machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start qemu")?;
    let mut results = Vec::new();
    for line in BufReader::new(machine.stdout.take().context("qemu has no output")?).split(b'\n') {
        let line =
            String::from_utf8_lossy(&line.context("read the machine's console")?).trim_end().to_owned();
        println!("       {line}");
        results.extend(line.strip_prefix("VM-RESULT ").map(str::to_owned));
    }
    machine.wait().context("wait for qemu")?;
    Ok(results)
}
