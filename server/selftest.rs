//! Before a server takes work it runs a canary through the real path: a program of ours that tries the
//! walls from inside. A wall that is promised and does not hold is a reason not to start.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use engine::{Context, Images, Launcher, Leases, NoObserver, Over, Stdin};
use image::{BoxFuture, ImageConfig, ImageError, Lease, Rootfs};
use run::{Command, FileContent, FileSpec, Limits, Outcome, PrincipalName, Pull, RunSpec};
use sandbox::protocol::Hello;
use tokio_util::sync::CancellationToken;

/// Where the canary sits inside.
const INSIDE: &str = "/canary";
const MEMORY_BYTES: u64 = 64 << 20;
const TIME_MS: u64 = 120_000;
const PROCESSES: u64 = 8;

/// An image without a file in it: the canary is static and needs none.
struct Nothing;

impl Images for Nothing {
    fn acquire<'a>(
        &'a self,
        _: &'a PrincipalName,
        _: &'a str,
        _: Pull,
    ) -> BoxFuture<'a, Result<Lease, ImageError>> {
        Box::pin(async {
            Ok(Lease::unguarded("canary", None, Rootfs::Layers([].into()), ImageConfig::default()))
        })
    }
}

/// Our own launcher's program, which is also the canary; read while its file can still be reached.
#[derive(Debug)]
pub struct Canary(Vec<u8>);

impl Canary {
    pub fn read(program: &std::path::Path) -> anyhow::Result<Self> {
        Ok(Self(std::fs::read(program).with_context(|| format!("read {}", program.display()))?))
    }
}

/// Runs the canary; an error names every wall that was found down.
pub async fn check(canary: Canary, hello: &Hello, launcher: &Arc<dyn Launcher>) -> anyhow::Result<()> {
    let enforced = |limit: &str| !hello.not_enforced.iter().any(|name| name == limit);
    let Flown { outcome, said: found } = fly(&canary, &[], launcher).await?;
    ensure!(outcome == Outcome::Exited { code: 0 }, "the self-test did not get through: {outcome:?}");
    ensure!(found.is_empty(), "the self-test found walls down, so nothing is served:\n{found}");
    if enforced("memory_bytes") {
        let ended = fly(&canary, &["memory"], launcher).await?.outcome;
        ensure!(ended == Outcome::MemoryLimit, "the self-test took more memory than its limit: {ended:?}");
    }
    if enforced("processes") {
        let counted = fly(&canary, &["processes"], launcher).await?;
        // The canary itself is one of them.
        let good = counted.said.trim().parse::<u64>().is_ok_and(|got| got < PROCESSES);
        ensure!(good, "the self-test got more processes than its limit: {counted:?}");
    }
    Ok(())
}

/// How a canary came back.
#[derive(Debug)]
struct Flown {
    outcome: Outcome,
    said: String,
}

async fn fly(canary: &Canary, words: &[&str], launcher: &Arc<dyn Launcher>) -> anyhow::Result<Flown> {
    let args = std::iter::once("canary").chain(words.iter().copied()).map(str::to_owned).collect();
    let command = Command::parse(Some(INSIDE.into()), args)?;
    let program =
        FileSpec { path: INSIDE.into(), mode: 0o755, content: FileContent::Bytes(canary.0.clone()) };
    let room = canary.0.len() as u64 * 2;
    let limits = Limits {
        memory_bytes: MEMORY_BYTES + room,
        disk_bytes: room,
        file_size_bytes: room,
        processes: PROCESSES,
        // A machine that is busy, or emulated, may take its time: what is tested are the other limits.
        wall_time_ms: TIME_MS,
        cpu_time_ms: TIME_MS,
        ..Limits::default()
    };
    #[cfg_attr(not(feature = "removable-walls"), expect(unused_mut, reason = "only a test build changes it"))]
    let mut spec = RunSpec { files: vec![program], limits, ..RunSpec::new("canary", command) };
    #[cfg(feature = "removable-walls")]
    spec.labels
        .extend(std::env::var("SANDGLASS_CANARY_WITHOUT").map(|walls| ("without-walls".into(), walls)));
    let context = Context {
        images: &Nothing,
        launcher: &**launcher,
        observer: &NoObserver,
        cores: &[],
        leases: &Leases::default(),
        files: None,
        gate: None,
        over: Over::default(),
    };
    let cancel = CancellationToken::new();
    let mut executed = engine::execute(context, &spec, Stdin::OfSpec, &cancel, &mut |_| {}).await;
    if let Some(mut control) = executed.control.take() {
        // Until its mounts and control groups are gone as well.
        while let Ok(Some(_)) = control.next().await {}
    }
    Ok(Flown {
        outcome: executed.outcome,
        said: String::from_utf8_lossy(&executed.stdout.bytes).into_owned(),
    })
}
