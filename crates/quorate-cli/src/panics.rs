//! What a panic comes to.

use std::panic::PanicHookInfo;

use crate::failure::FAILED;
use crate::output;

/// From now on a panic in any thread ends the process with its reason, and without a backtrace: a
/// node that goes on with a part of itself missing listens and answers nothing, and nothing
/// replaces it. What was acknowledged is on the disk. A panic that is caught (sled's, on damaged
/// files) becomes an error where it is caught. Comes first of all: where memory is missing for a
/// thread, it is missing for a backtrace, too, and the process would stand still over it.
pub(crate) fn end_the_process() {
    std::panic::set_hook(Box::new(|info| {
        if !quorate_node::catches_panics() {
            output::note(&format!("error: {}", reason(info)));
            std::process::exit(i32::from(FAILED));
        }
    }));
}

fn reason(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name").to_owned();
    let place = info.location().map_or_else(String::new, |place| format!(" at {place}"));
    let payload = info.payload();
    let literal = payload.downcast_ref::<&str>().copied();
    let what = literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = what.unwrap_or("no reason given");
    format!("the thread {name} panicked{place}: {what}")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    const CHILD: &str = "QUORATE_TEST_PANICS";

    /// In a process of its own, which is this test again: there a thread panics while another would
    /// go on.
    #[test]
    fn a_panic_in_any_thread_ends_the_process_with_its_reason() {
        if std::env::var_os(CHILD).is_some() {
            super::end_the_process();
            let panics = || panic!("out of {}", "luck");
            let _never = thread::Builder::new().name("some".to_owned()).spawn(panics).unwrap();
            thread::sleep(Duration::from_secs(60));
            return;
        }
        let this = "panics::tests::a_panic_in_any_thread_ends_the_process_with_its_reason";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let child = child.args([this, "--exact", "--nocapture"]);
        let ended = child.env(CHILD, "1").env("RUST_BACKTRACE", "1").output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.starts_with("error: the thread some panicked at "), "{said}");
        assert!(said.ends_with(": out of luck\n") && said.lines().count() == 1, "{said}");
    }
}
