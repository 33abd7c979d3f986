//! A wire between a client and a registry: it passes on whatever it is given, counts what comes back, and can be
//! cut once.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::Registry;

/// The wire. It is at an address of its own and ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    wire: Arc<Wire>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Wire {
    real: SocketAddr,
    /// What the registry has sent, and the client was given.
    sent: AtomicU64,
    /// After how much of that the wire breaks, once.
    cut_at: u64,
    is_cut: AtomicBool,
    stopping: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    pub fn before(registry: &Registry) -> Self {
        Self::cut_after(registry, u64::MAX)
    }

    /// One that breaks every connection when the registry has sent that much over it, and is whole from then on.
    pub fn cut_after(registry: &Registry, bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a port");
        let address = listener.local_addr().expect("a listener has an address");
        let wire = Arc::new(Wire {
            real: registry.address(),
            sent: AtomicU64::new(0),
            cut_at: bytes,
            is_cut: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let shared = Arc::clone(&wire);
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                // A client or a registry that hangs up ends its own connection and nothing else.
                let _ = Wire::join(&shared, client);
            }
        });
        Self { address, wire, accepting: Some(accepting) }
    }

    /// `127.0.0.1:PORT`, as references and flags write it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// What came from the registry so far, answers' heads included.
    pub fn sent_bytes(&self) -> u64 {
        self.wire.sent.load(Ordering::SeqCst)
    }

    pub fn was_cut(&self) -> bool {
        self.wire.is_cut.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.wire.stopping.store(true, Ordering::SeqCst);
        self.wire.hang_up();
        // Wakes the accepting thread, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

impl Wire {
    fn join(wire: &Arc<Self>, client: TcpStream) -> std::io::Result<()> {
        let registry = TcpStream::connect(wire.real)?;
        let ends = [client.try_clone()?, registry.try_clone()?];
        wire.open.lock().unwrap_or_else(PoisonError::into_inner).extend(ends);
        let (mut asks, mut hears) = (client.try_clone()?, registry.try_clone()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut asks, &mut hears);
            let _ = hears.shutdown(Shutdown::Write);
        });
        let wire = Arc::clone(wire);
        std::thread::spawn(move || {
            let _ = wire.pass_on(&registry, &client);
            let _ = client.shutdown(Shutdown::Both);
            let _ = registry.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    /// Until one of the two has had enough, or the wire breaks: then what was passed on before arrives, and
    /// nothing after it.
    fn pass_on(&self, mut registry: &TcpStream, mut client: &TcpStream) -> std::io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = registry.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let before = self.sent.fetch_add(count as u64, Ordering::SeqCst);
            let left = self.cut_at.saturating_sub(before).min(count as u64) as usize;
            if left < count && !self.is_cut.swap(true, Ordering::SeqCst) {
                self.sent.fetch_sub((count - left) as u64, Ordering::SeqCst);
                client.write_all(&buffer[..left])?;
                self.hang_up();
                return Ok(());
            }
            client.write_all(&buffer[..count])?;
        }
    }

    fn hang_up(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;

    #[test]
    fn it_passes_everything_on_counts_it_and_breaks_once() {
        let registry = Registry::empty();
        let ask = |relay: &Relay| Request::new(relay.address, "GET", "/v2/").try_send();
        let whole = Relay::before(&registry);
        assert_eq!(ask(&whole).expect("an answer").text(), "{}");
        let once = whole.sent_bytes();
        assert!(once > 100 && !whole.was_cut(), "{once}");
        assert_eq!(ask(&whole).expect("an answer").text(), "{}");
        assert_eq!(whole.sent_bytes(), 2 * once);

        let cut = Relay::cut_after(&registry, once - 1);
        assert_eq!(ask(&cut).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!((cut.sent_bytes(), cut.was_cut()), (once - 1, true));
        assert_eq!(ask(&cut).expect("an answer").text(), "{}");
        assert_eq!(cut.sent_bytes(), 2 * once - 1);
    }
}
