//! One file tree with the three programs, for everybody who is measured: as a folder, as a layer in a
//! store, as a tar file and as an image. It is made once and kept in `target/bench`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use support::{Compression, Image, Layer, Registry, Value, guest, json, stock, target, tool};

/// To be raised whenever what is made below changes.
const EDITION: &str = "1";

const PACKAGES: &str = "g++,python3";

/// Small, but with the headers that everybody includes.
const HELLO: &str = "#include <iostream>
#include <string>
#include <vector>
int main() {
    std::vector<std::string> words{\"hello\", \"world\"};
    for (const auto& word : words) std::cout << word << '\\n';
}
";

/// What the tree is called in a layer store, where names are digests.
const LAYER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One program that is measured.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) argv: &'static [&'static str],
}

pub(crate) const PROGRAMS: [Program; 3] = [
    Program {
        name: "nothing",
        what: "a static program that returns 0 at once",
        argv: &["/usr/local/bin/nothing"],
    },
    Program {
        name: "python",
        what: "`python3 -c pass`, dynamic, with some hundred files opened",
        argv: &["/usr/bin/python3", "-c", "pass"],
    },
    Program {
        name: "compile",
        what: "`g++` of a C++ program of seven lines with `<iostream>`, `<string>` and `<vector>`",
        argv: &["/usr/bin/g++", "-o", "/tmp/hello", "/usr/local/src/hello.cpp"],
    },
];

#[derive(Debug)]
pub(crate) struct Workbench {
    folder: PathBuf,
}

impl Workbench {
    pub(crate) fn prepare() -> Result<Self> {
        let bench = target().join("bench");
        let folder = bench.join(format!("tree-{EDITION}"));
        if !folder.exists() {
            let unfinished = bench.join("unfinished");
            let _ = fs::remove_dir_all(&unfinished);
            fill(&Self { folder: unfinished.clone() })?;
            fs::rename(unfinished, &folder).context("keep the tree")?;
        }
        Ok(Self { folder })
    }

    /// The folder of a layer store that has the tree.
    pub(crate) fn layers(&self) -> PathBuf {
        self.folder.join("layers")
    }

    /// The tree itself.
    pub(crate) fn root(&self) -> PathBuf {
        self.layers().join(LAYER)
    }

    pub(crate) fn tar(&self) -> PathBuf {
        self.folder.join("tree.tar")
    }

    /// A registry that has the tree as an image, and the image's name there.
    pub(crate) fn registry(&self) -> Result<(Registry, String)> {
        let registry = Registry::empty();
        let layer = Layer::from_file(Compression::Zstd, &self.tar(), &self.folder.join("tree.tar.zst"));
        let image = Image::new([layer.context("compress the tree")?]).set("Env", json!([PATH]));
        registry.push("bench", "1", &image);
        let name = registry.image("bench:1");
        Ok((registry, name))
    }

    /// What the launcher is told by hand. A hundred compilers at once take longer than a run may by itself.
    pub(crate) fn spec(program: &Program) -> Value {
        json!({
            "rootfs": { "layers": [LAYER] }, "argv": program.argv, "env": [PATH], "workdir": "/",
            "user": "", "limits": { "wall_time_ms": 60_000 }, "files": [], "profile": "strict",
        })
    }
}

fn fill(workbench: &Workbench) -> Result<()> {
    let root = workbench.root();
    fs::create_dir_all(&root).context("make a folder for the tree")?;
    let packed = workbench.folder.join("packed.tar");
    stock::bootstrap(&packed, PACKAGES);
    call(Command::new(tool("tar")).arg("-C").arg(&root).arg("-xf").arg(&packed))?;
    fs::remove_file(packed).context("remove a tar file")?;
    // Where everybody mounts something.
    for name in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).context("make a mount point")?;
    }
    place(&root, "usr/local/bin/nothing", &guest::bytes("nothing"), 0o755)?;
    place(&root, "usr/local/src/hello.cpp", HELLO.as_bytes(), 0o644)?;
    call(Command::new(tool("tar")).arg("-C").arg(&root).arg("-cf").arg(workbench.tar()).arg("."))
}

fn place(root: &Path, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let path = root.join(path);
    fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context("set a mode")
}

fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
