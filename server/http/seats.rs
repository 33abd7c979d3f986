//! How many requests each principal has open. Connections are for everybody: one who opens as many as there may be, each
//! following a run that lasts, would keep all others out for as long as it likes.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use run::PrincipalName;

#[derive(Debug)]
pub struct Seats {
    each_max: usize,
    open: Mutex<HashMap<PrincipalName, usize>>,
}

/// One request's, until its answer has been sent.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    name: PrincipalName,
}

impl Seats {
    /// A quarter of the connections is left to others.
    pub fn of(connections_max: usize) -> Self {
        Self { each_max: (connections_max - connections_max / 4).max(1), open: Mutex::default() }
    }

    pub fn take(self: &Arc<Self>, name: &PrincipalName) -> Option<Seat> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = open.get(name).copied().unwrap_or_default();
        if taken == self.each_max {
            return None;
        }
        open.insert(name.clone(), taken + 1);
        Some(Seat { seats: Arc::clone(self), name: name.clone() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.seats.open.lock().unwrap_or_else(PoisonError::into_inner);
        let left = open.get(&self.name).map_or(0, |taken| taken - 1);
        if left == 0 {
            open.remove(&self.name)
        } else {
            open.insert(self.name.clone(), left)
        };
    }
}

/// An answer, and the seat of its request.
#[derive(Debug)]
pub struct Seated {
    body: Body,
    _seat: Seat,
}

impl Seated {
    pub fn new(body: Body, seat: Seat) -> Self {
        Self { body, _seat: seat }
    }
}

impl HttpBody for Seated {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_principal_has_its_own_and_gets_back_what_it_gives_up() {
        let seats = Arc::new(Seats::of(4));
        let name = |text: &str| PrincipalName::parse(text).unwrap();
        let mut held: Vec<_> = (0..3).map(|_| seats.take(&name("alice")).unwrap()).collect();
        assert!(seats.take(&name("alice")).is_none() && seats.take(&name("bob")).is_some());
        held.pop();
        assert!(seats.take(&name("alice")).is_some());
        held.clear();
        assert!(seats.open.lock().unwrap().is_empty());
        assert!(Arc::new(Seats::of(1)).take(&name("alice")).is_some());
    }
}
