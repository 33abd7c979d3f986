//! L: what the same work costs with Debian's own tools, each alone, in seconds of processor time divided by the
//! number of processors. Nobody who does each step once can be much faster.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Every step for every layer, each timed by the shell's `times` before and after.
const STEPS: &str = r#"
    set -euo pipefail
    disk=$1.floor; host=$2; image=$3
    rm -f "$disk"; truncate -s 8G "$disk"; mkfs.ext4 -q "$disk"
    attach "$disk"; cd "$disk.at"
    curl -s -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$host/v2/$image/manifests/1" > manifest
    for digest in $(jq -r '.layers[].digest' manifest); do
        curl -s "http://$host/v2/$image/blobs/$digest" > "$digest"
    done
    cat sha256:* > /dev/null
    mkdir tree
    for digest in sha256:*; do igzip -d -c "$digest" > "$digest.tar"; done
    TIMEFORMAT='%U %S'
    time for digest in $(jq -r '.layers[].digest' manifest); do curl -s -o /dev/null "http://$host/v2/$image/blobs/$digest"; done
    time openssl dgst -sha256 sha256:*[0-9a-f] > /dev/null
    time for digest in sha256:*[0-9a-f]; do igzip -d -c "$digest" > /dev/null; done
    time openssl dgst -sha256 ./*.tar > /dev/null
    time for tar in ./*.tar; do tar --extract --numeric-owner --file "$tar" --directory tree; done
"#;

pub(super) fn measure(host: &str, image: &str, place: &Path) -> Result<f64> {
    let mut command = Command::new("unshare");
    let script = format!("{}{STEPS}", super::ATTACH);
    command.args(["--mount", "bash", "-c", &script, "floor"]).arg(place.join("disk")).args([host, image]);
    let done = command.stdin(Stdio::null()).output().context("start unshare")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "the floor could not be measured: {said}");
    let cpu: f64 = said.split_whitespace().filter_map(|word| word.parse::<f64>().ok()).sum();
    let _ = std::fs::remove_file(place.join("disk.floor"));
    Ok(cpu / std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64))
}
