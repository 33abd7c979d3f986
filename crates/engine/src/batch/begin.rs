//! The moment at which a promised batch begins: it is written down before its first program starts, and until
//! then a server that stops can leave the batch to the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::BatchId;
use crate::execute::Gate;
use crate::store::{BatchStore, StoreError};

const OPEN: u8 = 0;
const BEGUN: u8 = 1;
const CLOSED: u8 = 2;

/// What every run of a promised batch goes through before its program starts.
#[derive(Debug)]
pub(super) struct Begin {
    id: BatchId,
    store: Arc<dyn BatchStore>,
    state: AtomicU8,
    written: OnceCell<()>,
}

impl Begin {
    pub(super) fn new(id: BatchId, store: Arc<dyn BatchStore>) -> Arc<Self> {
        Arc::new(Self { id, store, state: AtomicU8::new(OPEN), written: OnceCell::new() })
    }

    /// Lets nothing of it begin any more; `false` where something has.
    pub(super) fn close(&self) -> bool {
        self.turn(CLOSED)
    }

    pub(super) fn has_begun(&self) -> bool {
        self.state.load(Ordering::Acquire) == BEGUN
    }

    /// Whether it is in that state from now on.
    fn turn(&self, to: u8) -> bool {
        let turned = self.state.compare_exchange(OPEN, to, Ordering::AcqRel, Ordering::Acquire);
        turned.is_ok() || turned == Err(to)
    }
}

impl Gate for Begin {
    fn pass(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            if !self.turn(BEGUN) {
                return Err("the server is stopping".into());
            }
            let written = self.written.get_or_try_init(|| self.store.begun(self.id)).await;
            written.map(drop).map_err(|error: StoreError| format!("the run was not started: {error}"))
        })
    }

    fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }
}
