//! A-01 to A-03: images, names and registries that would have the service talk to whom it must not. All
//! of it happens in a network of the test's own, in which every address that matters is a trap.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use support::{Daemon, Finished, Folder, Image, Liar, Lie, Registry, Value, json, tool};

use super::Target;

fn run_of(image: &str) -> Value {
    json!({ "image": image, "cmd": "true", "pull": "always" })
}

/// Addresses of machines that hide behind ours, and one that stands for the open internet.
const PLACE: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmp /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work overlay /etc
rm -f /etc/resolv.conf /etc/hosts /etc/nsswitch.conf
echo 'nameserver 127.0.0.1' > /etc/resolv.conf
echo '127.0.0.1 localhost' > /etc/hosts
printf 'passwd: files\ngroup: files\nhosts: files dns\n' > /etc/nsswitch.conf
umount --lazy /mnt
ip link set lo up
for address in 169.254.169.254 10.0.0.1 172.17.0.1 100.64.0.1 1.1.1.1; do ip address add $address/32 dev lo; done
"#;

/// Makes the attack on a thread that has moved, with all that it starts, into a network without a way
/// out and with an `/etc` of its own. What would be a packet to a stranger ends in a trap here.
fn in_a_network_of_its_own(attack: impl FnOnce() + Send) {
    let attack = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("leave the host's network");
        Finished::output(&tool("sh"), &["-c", PLACE]);
        attack();
    };
    let ended = std::thread::scope(|scope| scope.spawn(attack).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Listens everywhere where an internal service might, and writes down who came and what they said.
struct Trap(Arc<Mutex<Vec<String>>>);

impl Trap {
    fn set() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listeners = [80, 443, 5000].map(|port| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("listen on every address");
            listener.set_nonblocking(true).expect("don't wait for connections");
            listener
        });
        let notes = Arc::clone(&seen);
        std::thread::spawn(move || {
            while Arc::strong_count(&notes) > 1 {
                for (mut stream, _) in listeners.iter().filter_map(|listener| listener.accept().ok()) {
                    let address = stream.local_addr().expect("an address").ip().to_canonical();
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
                    let mut said = [0; 4096];
                    let length = stream.read(&mut said).unwrap_or_default();
                    let said = String::from_utf8_lossy(&said[..length]).to_lowercase();
                    notes.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{address} {said}"));
                    let _ = stream
                        .write_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self(seen)
    }

    /// Who came since it was last asked.
    fn caught(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A name server that says what an attacker's would. Dropping it ends it.
struct NameServer(Arc<Mutex<Vec<String>>>);

impl NameServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:53").expect("listen for questions");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while Arc::strong_count(&notes) > 1 {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                let (labels, kind) = question(&query[..length]);
                let name = labels.join(".");
                let mut asked = notes.lock().unwrap_or_else(PoisonError::into_inner);
                let before = asked.iter().filter(|line| **line == format!("{name} {kind}")).count();
                asked.push(format!("{name} {kind}"));
                drop(asked);
                let _ = socket.send_to(&answer(&query[..length], &zone(&name, kind, before)), client);
            }
        });
        Self(asked)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// What a name is said to be, as owner, type and data; `before` is how often it has been asked for.
fn zone(name: &str, kind: u16, before: usize) -> Vec<(String, u16, Vec<u8>)> {
    let alias = |from: &str, to: &str| (from.to_owned(), CNAME, wire_name(to));
    let address = |owner: &str, text: &str| match text.parse().expect("an address") {
        IpAddr::V4(address) => (owner.to_owned(), A, Ipv4Addr::octets(&address).to_vec()),
        IpAddr::V6(address) => (owner.to_owned(), AAAA, Ipv6Addr::octets(&address).to_vec()),
    };
    let records = match name {
        "open.test" => vec![address(name, "1.1.1.1")],
        "loop.test" | "registry-1.docker.io" => vec![address(name, "127.0.0.1")],
        "metadata.google.internal" => vec![address(name, "169.254.169.254")],
        "host.docker.internal" => vec![address(name, "172.17.0.1")],
        "six.test" => vec![address(name, "::1")],
        "mapped.test" => vec![address(name, "::ffff:169.254.169.254")],
        "dual.test" => vec![address(name, "1.1.1.1"), address(name, "127.0.0.1")],
        "mixed.test" => vec![address(name, "1.1.1.1"), address(name, "::1")],
        "chain.test" => {
            vec![alias(name, "link.test"), alias("link.test", "end.test"), address("end.test", "10.0.0.1")]
        }
        "flip.test" => vec![address(name, if before == 0 { "1.1.1.1" } else { "127.0.0.1" })],
        _ => Vec::new(),
    };
    records.into_iter().filter(|(_, of, _)| *of == kind || *of == CNAME).collect()
}

fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// The name and the type that a query asks for.
fn question(query: &[u8]) -> (Vec<String>, u16) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels, u16::from_be_bytes([query[at + 1], query[at + 2]]))
}

fn answer(query: &[u8], records: &[(String, u16, Vec<u8>)]) -> Vec<u8> {
    let end = 12 + wire_name(&question(query).0.join(".")).len() + 4;
    let mut reply = [&query[..2], &[0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]].concat();
    reply.extend_from_slice(&query[12..end]);
    for (owner, kind, data) in records {
        reply.extend(wire_name(owner));
        reply
            .extend([kind.to_be_bytes(), [0, 1], [0, 0], [0, 0], (data.len() as u16).to_be_bytes()].concat());
        reply.extend(data);
    }
    reply
}

#[test]
fn images_at_internal_addresses_are_refused_before_any_packet() {
    in_a_network_of_its_own(|| {
        let (trap, names) = (Trap::set(), NameServer::start());
        let target = Target::start(Daemon::builder());
        for image in [
            "169.254.169.254/latest/meta-data",
            "127.0.0.1:5000/x",
            "127.0.0.1:443/x",
            "localhost/x",
            "localhost:80/x",
            "LOCALHOST:5000/x",
            "[::1]:80/x",
            "[::1]/x",
            "[::ffff:169.254.169.254]/x",
            "::1/x",
            "0.0.0.0/x",
            "0:80/x",
            "0x7f.1/x",
            "0x7f000001:443/x",
            "127.1/x",
            "0177.0.0.1/x",
            "2130706433:443/x",
            "10.0.0.1/x",
            "172.17.0.1:5000/x",
            "100.64.0.1/x",
            "127.0.0.1.:5000/x",
            "1.1.1.1@127.0.0.1/x",
            "1.1.1.1:443@127.0.0.1/x",
            "127.0.0.1#1.1.1.1/x",
            "127.0.0.1\\1.1.1.1/x",
            "127.0.0.1%2f/x",
            "\u{ff11}27.0.0.1/x",
            "127\u{3002}0.0.1/x",
            "\u{2460}27.0.0.1/x",
        ] {
            for (path, body) in [("/runs", run_of(image)), ("/images", json!({ "image": image }))] {
                let id = format!("A-01 {path} {image}");
                let response = target.post(&id, path, &body);
                assert_eq!(response.status, 422, "{id}: {}", response.text());
            }
        }
        assert_eq!((names.asked(), trap.caught()), (vec![], vec![]), "A-01: somebody was asked");
        // Docker's grammar takes these for repositories of Docker Hub, wherever that may be.
        for image in ["0/x", "2130706433/x"] {
            let problem = target.post("A-01", "/runs", &run_of(image)).problem(422, "image-not-allowed");
            let detail = problem["detail"].as_str().expect("words");
            assert!(detail.contains("registry docker.io"), "A-01 {image}: {detail}");
        }
        assert_eq!(trap.caught(), Vec::<String>::new(), "A-01: somebody was reached");
        target.stands("A-01");
    });
}

#[test]
fn names_that_lead_to_internal_addresses_are_refused_when_they_are_resolved() {
    in_a_network_of_its_own(|| {
        let (trap, names) = (Trap::set(), NameServer::start());
        let target = Target::start(Daemon::builder().flag("--pull-timeout-ms", 4000));
        for host in [
            "loop.test",
            "loop.test:5000",
            "metadata.google.internal",
            "host.docker.internal:80",
            "six.test",
            "mapped.test",
            "dual.test",
            "mixed.test",
            "chain.test",
        ] {
            let id = format!("A-02 {host}");
            let response = target.post(&id, "/runs", &run_of(&format!("{host}/x")));
            let detail = response.problem(422, "image-not-allowed")["detail"].to_string();
            assert!(detail.contains("not public"), "{id}: {detail}");
            assert_ne!(names.asked(), Vec::<String>::new(), "{id}: the name was never resolved");
            assert_eq!(trap.caught(), Vec::<String>::new(), "{id}: somebody was reached");
        }
        // The trap is real: a name of the open internet leads into it, and what is wrong is only that
        // nobody speaks TLS there.
        let response = target.post("A-02", "/runs", &run_of("open.test/x"));
        assert!([502, 504].contains(&response.status), "A-02: {}", response.text());
        let caught = trap.caught();
        assert!(!caught.is_empty() && caught.iter().all(|line| line.starts_with("1.1.1.1 ")), "{caught:?}");
        // A name that changes its mind is judged anew each time; no connection goes to what was not judged.
        target.post("A-02 flip", "/runs", &run_of("flip.test/x")).problem(422, "image-not-allowed");
        let caught = trap.caught();
        assert!(caught.iter().all(|line| line.starts_with("1.1.1.1 ")), "A-02 flip: {caught:?}");
        target.stands("A-02");
    });
}

/// Where a registry sends whoever believes it.
const LURES: [&str; 10] = [
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.169.254/",
    "//10.0.0.1/x",
    "http://localhost:80/x",
    "https://loop.test/x",
    "https://[::ffff:127.0.0.1]/x",
    "https://2130706433/x",
    "http://open.test/x",
    "https://sandglass:secret@1.1.1.1/x",
    "file:///etc/passwd",
];

#[test]
fn a_registry_leads_nobody_to_internal_addresses_and_learns_no_password_for_another() {
    in_a_network_of_its_own(|| {
        let (trap, _names) = (Trap::set(), NameServer::start());
        // Not one with the stock images, which take a network to be made.
        let registry = Registry::empty();
        registry.push("busybox", "latest", &Image::busybox());
        let lure = Arc::new(Mutex::new((String::new(), String::new())));
        let says = Arc::clone(&lure);
        let liar = Liar::before(&registry, move |_, path| {
            let (how, to) = says.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let redirect = || Lie::Say(307, vec![("Location".into(), to.clone())], Vec::new());
            match how.as_str() {
                "realm" => {
                    let bearer = format!("Bearer realm=\"{to}\",service=\"tests\"");
                    Lie::Say(401, vec![("WWW-Authenticate".into(), bearer)], Vec::new())
                }
                "manifests" | "blobs" if path.contains(&format!("/{how}/")) => redirect(),
                _ => Lie::Truth,
            }
        });
        let folder = Folder::new();
        let auth = registry.docker_config("secret")["auths"][registry.host()].clone();
        let config = json!({ "auths": { liar.host(): auth } }).to_string();
        std::fs::write(folder.join("config.json"), config).expect("write a docker config");
        let open = || Daemon::builder().flag("--insecure-registry", liar.host());
        let named = open().flag("--insecure-registry", "10.0.0.1:5000");
        let named = named.flag("--docker-config", folder.join("config.json").display());
        let (anonymous, known) = (Target::start(open()), Target::start(named));
        for (who, target) in [("anonymous", &anonymous), ("known", &known)] {
            for (how, to) in ["manifests", "blobs", "realm"].iter().flat_map(|how| LURES.map(|to| (*how, to)))
            {
                let id = format!("A-03 {who} {how} {to}");
                *lure.lock().expect("no holder panics") = (how.into(), to.into());
                let response = target.post(&id, "/runs", &run_of(&liar.image("busybox")));
                assert!([422, 502].contains(&response.status), "{id}: {}", response.text());
                assert!(!response.text().contains("secret"), "{id}: {}", response.text());
                assert_eq!(trap.caught(), Vec::<String>::new(), "{id}: somebody was reached");
            }
        }
        // One whom the operator has named is reached, but is not shown what was meant for another.
        for how in ["manifests", "blobs", "realm"] {
            let id = format!("A-03 named {how}");
            *lure.lock().expect("no holder panics") = (how.into(), "http://10.0.0.1:5000/x".into());
            known.post(&id, "/runs", &run_of(&liar.image("busybox")));
            let caught = trap.caught();
            assert_eq!(caught.is_empty(), how == "realm", "{id}: {caught:?}");
            assert!(caught.iter().all(|line| !line.contains("authorization")), "{id}: {caught:?}");
        }
        // Left alone, the same registry is a good one.
        *lure.lock().expect("no holder panics") = Default::default();
        known.post("A-03", "/runs", &run_of(&liar.image("busybox"))).expect(200);
        anonymous.stands("A-03");
        known.stands("A-03");
    });
}
