//! Following what changes: live views of services over one shared stream, and single watches.

mod discovery;
mod watch;

pub(crate) use discovery::Hubs;
pub use discovery::{Discovery, DiscoveryEvent, Instances, Listener, Origin, Selector};
pub use watch::{View, Watch, WatchEvent, WatchStatus};
