//! What goes wrong on a machine sooner or later, done on purpose: whatever it is, good clients are served,
//! nothing is left behind, and the server is as before when it is over. What dies is in `crash`, what
//! registries do in `security/registries` and `image`.

mod connections;
mod descriptors;
mod memory;
mod phases;
mod run_store;

use support::{Daemon, Value, json};

fn echo(daemon: &Daemon) -> Value {
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["hi"] }));
    assert_eq!(run["stdout"], "hi\n", "{run}");
    run
}
