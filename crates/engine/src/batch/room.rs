//! Room for what a prepare command can leave behind. It is taken when the command has its slot; who finds none then
//! gives the slot back and stands in line until there is some.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use run::{PrincipalName, Problem, RunSpec};

use super::Batches;
use super::room_line::{GaveUp, RoomPlace};
use crate::Leases;
use crate::execute::problem;
use crate::files::{Files, FilesError, Reservation};
use crate::over::Room;

/// How long nothing at all is given back before those who wait for it give up, and how long one may keep all others
/// waiting.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

pub(super) struct PrepareRoom {
    batches: Batches,
    who: PrincipalName,
    files: Files,
    bytes: u64,
    stage: Mutex<Stage>,
}

/// How far it has come with its room.
enum Stage {
    Outside,
    InLine(RoomPlace<Reservation>),
    Has(Reservation),
}

impl PrepareRoom {
    /// Nothing is taken yet; but where there can never be so much beside what the batch holds itself, that is said
    /// at once.
    pub(super) fn of(batches: &Batches, run: &RunSpec, held: &Leases) -> Result<Self, FilesError> {
        let (bytes, files_bytes) = (batches.inner.prepared.most(run), held.bytes());
        let files = batches.inner.engine.inner.config.files.clone();
        let fits = |files: &Files| bytes.saturating_add(files_bytes) <= files.bytes_max();
        let most_bytes = files.as_ref().map_or(0, Files::bytes_max);
        let files = files.filter(fits).ok_or(FilesError::Never { bytes, files_bytes, most_bytes })?;
        let (batches, who) = (batches.clone(), run.principal.name.clone());
        Ok(Self { batches, who, files, bytes, stage: Mutex::new(Stage::Outside) })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was taken is the caller's from now on.
    pub(super) fn hand_over(&self) -> Option<Reservation> {
        match std::mem::replace(&mut *self.stage(), Stage::Outside) {
            Stage::Has(room) => Some(room),
            Stage::Outside | Stage::InLine(_) => None,
        }
    }

    /// Gives room to everybody in the line for whom there is some.
    fn serve(&self) {
        let inner = &self.batches.inner;
        inner.room_line.serve(|bytes| inner.prepared.reserve(&self.files, bytes).ok());
    }

    fn place(&self) -> RoomPlace<Reservation> {
        match std::mem::replace(&mut *self.stage(), Stage::Outside) {
            Stage::InLine(place) => place,
            Stage::Outside | Stage::Has(_) => self.batches.inner.room_line.enter(&self.who, self.bytes),
        }
    }

    async fn stand_in_line(&self) -> Result<(), Problem> {
        let place = self.place();
        let waited = place.wait(|| self.files.given_back(), || self.serve()).await;
        *self.stage() = Stage::Has(waited.map_err(|gave_up| self.no_room(&gave_up))?);
        Ok(())
    }

    fn no_room(&self, GaveUp(patience): &GaveUp) -> Problem {
        let (bytes, minutes) = (self.bytes, patience.as_secs() / 60);
        let detail = format!(
            "there is no room for the {bytes} bytes that the command may leave behind, and in {minutes} minutes nothing \
             was given back, or not enough while it kept others waiting"
        );
        problem("files-full", detail)
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // A panic under this lock leaves it whole.
        self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Room for PrepareRoom {
    fn take(&self) -> bool {
        let mut stage = self.stage();
        if matches!(*stage, Stage::Has(_)) {
            return true;
        }
        // Nobody goes past those who wait but by the rules of the line.
        let mut place = self.batches.inner.room_line.enter(&self.who, self.bytes);
        self.serve();
        *stage = match place.granted() {
            Some(room) => Stage::Has(room),
            None => Stage::InLine(place),
        };
        matches!(*stage, Stage::Has(_))
    }

    fn wait(&self) -> BoxFuture<'_, Result<(), Problem>> {
        Box::pin(self.stand_in_line())
    }
}
