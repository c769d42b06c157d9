//! "A wrong clock": one node's is far ahead (libfaketime), while somebody keeps an instance and
//! somebody watches it. Where that library cannot be had, the test says so and ends.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::ended::{self, MEET};
use super::{CLOCK, commands, says, walk};
use crate::built::installed;
use crate::ports::Ports;
use crate::skipped::skipped;

#[test]
fn a_wrong_clock_cuts_one_node_off_and_ends_no_lease() {
    let library = match installed(".ci/install-faketime", &[]) {
        Ok(library) => library,
        Err(reason) => return skipped("a wrong clock", reason),
    };
    let (certs, rest) = ended::secured();
    // All certificates have ended, by the clock of node 3. It looks at open connections once a
    // minute.
    let jump = "echo +400d > clock\nuntil grep -q 'has ended' node-3.log; do sleep 0.2; done\necho jumped\n\
         until quorate cluster status | grep -q '2 of 3 voters answer'; do sleep 0.5; done\necho cut off\nsleep 16\n";
    let set_up = "echo +0 > clock\nchronyc() { echo +0 > clock; }\nexport PATH=$PWD/bin:$PATH\n";
    let runbook = commands(|heading| heading == CLOCK);
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let script = format!("{MEET}{set_up}{certs}{rest}{}", ended::script(jump, &runbook));
    wrap(&library, directory.path());
    let mut walking = walk(&ended::with_ports(&script, ports), ports, directory.path());
    ended::somebody_lives(&mut walking, directory.path(), ports);
    let said = walking.succeed();
    let after = &said[said.find("cut off").unwrap()..];
    let promised = ["DEGRADED: 2 of 3 voters answer", "exit code 1", "has ended", "OK: node"];
    says(after, &promised);
    ended::is_unbroken(&said);
    ports.are_free_again(&said);
}

/// A `quorate` in `bin/` whose node 3 goes by the clock in the file `clock`.
fn wrap(library: &str, directory: &Path) {
    let bin = directory.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let clock = directory.join("clock");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'--id 3 '*)\n\
         export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1\n\
         export FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1\nesac\nexec {} \"$@\"\n",
        clock.display(),
        env!("CARGO_BIN_EXE_quorate")
    );
    let wrapper = bin.join("quorate");
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(wrapper, Permissions::from_mode(0o755)).unwrap();
}
