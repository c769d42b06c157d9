//! Following what changes: live views of services over one shared stream, and single watches.
//!
//! | file | duty |
//! |---|---|
//! | `stream` | a subscription, kept on one node after the other; what its messages mean is in `stream/cursor` |
//! | `status` | how a stream stands |
//! | `watch` | one subscription with a view and events of its own |
//! | `discovery` | live views of services, all over the stream of a hub |

mod discovery;
mod status;
mod stream;
mod watch;

pub(crate) use discovery::Hubs;
pub use discovery::{Discovery, DiscoveryEvent, Instances, Listener, Origin, Selector};
pub use status::WatchStatus;
pub use watch::{View, Watch, WatchEvent};
