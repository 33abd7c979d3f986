//! Where the trees of layers live. Whoever implements this owns them; here they are only names.

use std::io;

use bytes::Bytes;
pub use futures_util::future::BoxFuture;

/// Keeps unpacked layers by name. A name is the hex of a diff id, perhaps with `-1`, `-2` … behind it.
pub trait LayerStore: Send + Sync + 'static {
    /// Starts to unpack one layer. Nothing is kept before [`Commit::name`].
    fn unpack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::Job,
    ) -> BoxFuture<'a, io::Result<Box<dyn Unpacking>>>;

    /// Starts to make an archive of a layer that is there.
    fn pack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::PackJob,
    ) -> BoxFuture<'a, io::Result<Box<dyn Packing>>>;

    /// Takes a layer's name away; one that is not there is no error. What comes back ends when its
    /// files are gone too, which may take its time.
    fn remove<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, io::Result<Deleting>>;

    /// What the file system under the trees has left to give, where that can be said.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// How many more files it takes; nothing where there is no bound.
    fn free_inodes(&self) -> Option<u64> {
        None
    }
}

/// The rest of a removal.
pub type Deleting = BoxFuture<'static, io::Result<()>>;

/// A layer on its way in. Dropping it gives the layer up.
pub trait Unpacking: Send {
    /// Hands over compressed bytes and waits while the unpacker is behind. An error means that the
    /// unpacker reads no more; [`Unpacking::finish`] then tells why.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>>;

    /// Says that these were all the bytes and waits for what the unpacker made of them.
    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<Unpacked>>;
}

/// A layer on its way out.
pub trait Packing: Send {
    /// The next bytes of the archive; none once there will be no more, and [`Packing::finish`] tells why.
    fn read(&mut self) -> BoxFuture<'_, io::Result<Bytes>>;

    /// What [`unpack::pack_jailed`] returned.
    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<String>>;
}

/// What the unpacker said, and the right to keep what it wrote.
pub struct Unpacked {
    /// What [`unpack::jailed`] returned.
    pub report: String,
    /// Dropping it gives the layer up, unless it has its name.
    pub commit: Box<dyn Commit>,
}

impl std::fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacked").field("report", &self.report).finish_non_exhaustive()
    }
}

/// What becomes of layers that are unpacked. Those that are kept together are named, and one of them is asked to sync
/// for all. The one that was begun first: what the disk could not write since then it is told.
pub trait Commit: Send {
    /// Gives the layer its name, so that sandboxes can have it, in place of whatever has that name.
    fn name(&mut self) -> BoxFuture<'_, io::Result<()>>;

    /// Makes all layers durable that have been unpacked and named by now, the others as well as this one.
    fn sync(&mut self) -> BoxFuture<'_, io::Result<()>>;
}
