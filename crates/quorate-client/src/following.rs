//! Following what changes: live views of services over one shared stream, and single watches.

pub(crate) mod discovery;
pub(crate) mod watch;

pub use discovery::{Discovery, DiscoveryEvent, Instances, Listener, Origin, Selector};
pub use watch::{View, Watch, WatchEvent, WatchStatus};
