//! Snapshots that are not what was written are refused, however they were damaged.

use super::*;

/// One of every record.
fn small() -> Registry {
    let mut t = Transcript::default();
    t.apply(999, found(5, 0));
    t.apply(1_000, register("web/a web/b", 7));
    t.apply(1_001, deregister("web/b"));
    t.apply(1_002, set_override("web/a", Status::Draining));
    t.apply(1_003, set_override("api/a", Status::OutOfService));
    t.registry
}

/// The same, with an instance that has checks.
fn small_with_checks() -> Registry {
    let mut t = Transcript { registry: small() };
    t.apply(1_004, with_checks("web/c", 7, &[tcp_check()]));
    t.apply(1_005, set_health_because("web/c@7", Health::Critical, "late"));
    t.registry
}

/// The same, with an instance that has a load, too, and the reply to a request.
fn small_with_everything() -> Registry {
    let mut t = Transcript { registry: small_with_checks() };
    t.apply(1_006, update_load("web/c@7", 300));
    t.apply(1_007, with_loads("web/d", 7, &[5]));
    let request = Request {
        origin: 1,
        number: 2,
        done_below: 1,
        since: Clock(1_000),
        digest: 5,
        share: Share(300),
    };
    let op = update_load("web/d@7", 6).into();
    t.registry.apply(&Command { clock: Clock(1_008), request: Some(request), op });
    t.registry.members_changed(&[1, 4].into(), &[1].into());
    t.registry
}

fn written(registry: &Registry) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(registry, &mut bytes).unwrap();
    bytes
}

#[test]
fn restored_registry_goes_on_where_it_was() {
    let registry = read_snapshot(&mut &written(&small())[..]).unwrap();
    let mut t = Transcript { registry };
    let ended = "rejected: incarnation 7 of instance default/web/b was deregistered; register with a higher one";
    t.at(1_004, register("web/b", 7), ended);
    t.at(1_004, register("api/a", 7), "registered L2 15000ms @7 | #5 added api/a@7");
    assert_eq!(t.instance("api/a").status(), Status::OutOfService);
    t.at(16_000, Op::Tick, "done | #6 expired web/a@7");
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = written(&small_with_everything());
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read_snapshot(&mut &damaged[..]).is_err(), "bit {bit} of {}", bytes.len() * 8);
    }
}

#[test]
fn every_cut_is_found() {
    let bytes = written(&small_with_everything());
    for length in 0..bytes.len() {
        let error = read_snapshot(&mut &bytes[..length]).unwrap_err();
        assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
    }
}

#[test]
fn records_left_out_or_told_twice_are_found() {
    let bytes = written(&small_with_everything());
    let mut starts = vec![0];
    while let Some(length) = bytes.get(starts[starts.len() - 1]..).and_then(|b| b.first_chunk()) {
        starts.push(starts[starts.len() - 1] + 4 + u32::from_le_bytes(*length) as usize);
    }
    assert_eq!(*starts.last().unwrap(), bytes.len());
    for record in starts.windows(2) {
        let (start, end) = (record[0], record[1]);
        let without = [&bytes[..start], &bytes[end..]].concat();
        assert!(read_snapshot(&mut &without[..]).is_err(), "without {start}..{end}");
        let twice = [&bytes[..end], &bytes[start..]].concat();
        let last = end == bytes.len();
        assert_eq!(read_snapshot(&mut &twice[..]).is_ok(), last, "twice {start}..{end}");
    }
}

#[test]
fn another_version_is_named() {
    let mut bytes = written(&Registry::new());
    bytes[5] = 9;
    let error = read_snapshot(&mut &bytes[..]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the snapshot has format version 9, this software reads version 1"
    );
}

/// What a newer version adds is refused with words, also where it is all that the record has more.
#[test]
fn an_optional_field_of_a_newer_version_is_refused() {
    let bytes = written(&small());
    // The lease's: the last byte of the record behind the head.
    let lease = 4 + usize::from(bytes[0]);
    let end = lease + 4 + usize::from(bytes[lease]);
    assert_eq!((bytes[lease + 4], bytes[end - 1]), (3, 0), "the kind, and no optional fields");
    let mut newer = bytes.clone();
    newer[end - 1] = 1;
    let mut longer = bytes.clone();
    longer[lease] += 1;
    longer.insert(end, 7);
    for newer in [newer, longer] {
        let error = read_snapshot(&mut &newer[..]).unwrap_err();
        assert!(matches!(error, SnapshotError::Unknown { record: 1 }), "{error}");
        assert!(error.to_string().contains("a newer one wrote it"), "{error}");
    }
}

/// Also from its first record alone.
#[test]
fn whose_it_is_is_read() {
    let bytes = written(&small());
    assert_eq!(read_snapshot(&mut &bytes[..]).unwrap().cluster_id(), NonZeroU64::new(5));
    assert_eq!(read_snapshot_cluster(&mut &bytes[..]).unwrap(), NonZeroU64::new(5));
    assert_eq!(read_snapshot_cluster(&mut &written(&Registry::new())[..]).unwrap(), None);
}

#[test]
fn absurd_length_is_not_allocated() {
    let error = read_snapshot(&mut &[0xff_u8; 64][..]).unwrap_err();
    assert!(matches!(error, SnapshotError::Damaged { record: 0 }), "{error}");
}

#[test]
fn reader_stops_behind_the_last_record() {
    let mut bytes = written(&small());
    bytes.extend_from_slice(b"more");
    let mut input = &bytes[..];
    read_snapshot(&mut input).unwrap();
    assert_eq!(input, b"more");
}
