//! Doors for the fuzzer: what the other side of a socket may send, and what an image may have in the
//! files that are read inside.

use std::os::fd::AsFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::{Event, Hello, LaunchSpec, MAX_PACKET_BYTES, Order, Request};
use crate::{packet, passwd, sys};

/// One packet as each message that it could be, and as an image's list of users.
pub fn packet(bytes: &[u8]) {
    if bytes.is_empty() || bytes.len() > MAX_PACKET_BYTES {
        return;
    }
    read_as::<Request>(bytes);
    read_as::<LaunchSpec>(bytes);
    read_as::<Order>(bytes);
    read_as::<Event>(bytes);
    read_as::<Hello>(bytes);
    users(&String::from_utf8_lossy(bytes));
}

/// What can be read can be said again, and is then read as the same.
fn read_as<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let (ours, theirs) = packet::pair().expect("make a pair of sockets");
    sys::send_packet(ours.as_fd(), bytes, &[]).expect("send a packet");
    let Ok(Some((message, fds))) = packet::receive::<T>(theirs.as_fd()) else { return };
    assert!(fds.is_empty());
    let said = serde_json::to_vec(&message).expect("a message is plain data");
    let again: T = serde_json::from_slice(&said).expect("what was said can be read");
    assert_eq!(said, serde_json::to_vec(&again).expect("a message is plain data"));
}

/// The first line is who is wanted, the rest is both files.
fn users(text: &str) {
    const WIDTH: u32 = 65_536;
    let (user, files) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(identity) = passwd::resolve(user, files, files, WIDTH) {
        assert!(identity.uid < WIDTH && identity.gid < WIDTH && identity.home.starts_with('/'));
    }
}
