//! Who is compared: scripts that see `$1` (the registry), `$2` (the image) and `$3` (a program), are in an empty file
//! system, and call `elapsed` once with what is to be measured.

use std::path::{Path, PathBuf};

pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) script: &'static str,
    pub(super) program: PathBuf,
}

const SANDGLASS: &str = r#"
    export SANDGLASS_DATA_DIR="$PWD/data" SANDGLASS_DOCKER_CONFIG=
    mkfifo steps
    # It says so when runs can begin, and syncs then.
    { grep --quiet --max-count 1 committing; echo "$EPOCHREALTIME"; cat > /dev/null; } < steps &
    pull() { "$3" pull --json --insecure-registry "$1" "$1/$2:1" > steps; }
    times=$(elapsed pull "$1" "$2" "$3")
    wait; echo "$times"
"#;

const PODMAN: &str = r#"
    elapsed podman --root "$PWD/root" --runroot "$PWD/run" --storage-driver overlay \
        pull --quiet --tls-verify=false "$1/$2:1"
"#;

const CONTAINERD: &str = r#"
    cat > config.toml <<END
version = 2
root = "$PWD/root"
state = "$PWD/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$PWD/sock"
END
    containerd --config config.toml --log-level error >&2 &
    for _ in $(seq 100); do ctr --address "$PWD/sock" version >/dev/null 2>&1 && break; sleep 0.1; done
    elapsed ctr --address "$PWD/sock" images pull --plain-http "$1/$2:1"
    kill %1; wait || true
"#;

const UMOCI: &str = r#"
    both() {
        skopeo --insecure-policy copy --quiet --src-tls-verify=false "docker://$1/$2:1" oci:layout:x
        umoci unpack --image layout:x bundle
    }
    elapsed both "$1" "$2"
"#;

/// How we are called.
pub(super) const OURS: &str = "sandglass, with the durable commit";

/// Ourselves first.
pub(super) fn all(sandglass: &Path) -> Vec<Tool> {
    let tool = |name, script, program: &Path| Tool { name, script, program: program.to_owned() };
    let peers = [
        ("podman", PODMAN, "podman"),
        ("containerd", CONTAINERD, "containerd"),
        ("skopeo + umoci", UMOCI, "umoci"),
    ];
    let installed = |program: &str| {
        ["/usr/bin", "/usr/sbin"].iter().any(|folder| Path::new(folder).join(program).exists())
    };
    let peers = peers.into_iter().filter(|(_, _, program)| installed(program));
    let ours = tool(OURS, SANDGLASS, sandglass);
    std::iter::once(ours)
        .chain(peers.map(|(name, script, program)| tool(name, script, program.as_ref())))
        .collect()
}
