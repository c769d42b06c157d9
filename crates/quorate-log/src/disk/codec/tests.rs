//! The record format: fixed bytes, the size bound, and that no damaged byte goes unnoticed.

#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Put the records' entries together again, checking key order and contiguity on the way.
fn reassemble(first_index: u64, records: &[Record]) -> Vec<Vec<u8>> {
    assert!(records.is_sorted_by(|a, b| a.key < b.key), "records must be written in key order");
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for record in records {
        assert!(record.value.len() <= VALUE_BYTES_MAX);
        let (header, content) = decode(&record.key, &record.value).unwrap();
        match content {
            Content::Entries(found) => {
                assert_eq!(header.first_index, first_index + entries.len() as u64);
                entries.extend(found.into_iter().map(<[u8]>::to_vec));
                assert_eq!(header.last_index() + 1, first_index + entries.len() as u64);
            }
            Content::Chunk { number: 0, bytes, .. } => {
                assert_eq!(header.first_index, first_index + entries.len() as u64);
                entries.push(bytes.to_vec());
            }
            Content::Chunk { bytes, .. } => entries.last_mut().unwrap().extend_from_slice(bytes),
        }
    }
    entries
}

fn check_round_trip(lengths_bytes: &[usize], expected_records: usize) {
    let entries: Vec<Vec<u8>> =
        lengths_bytes.iter().enumerate().map(|(i, length)| vec![i as u8; *length]).collect();
    let records = encode(7, 3, &entries);
    assert_eq!(records.len(), expected_records, "for entries of {lengths_bytes:?} bytes");
    assert_eq!(reassemble(7, &records), entries);
}

#[test]
fn batches_are_split_and_large_entries_are_chunked() {
    check_round_trip(&[], 0);
    check_round_trip(&[0], 1);
    check_round_trip(&[300; 16], 1);
    check_round_trip(&[300; 256], 4);
    check_round_trip(&[BODY_BYTES_MAX - 4], 1);
    check_round_trip(&[BODY_BYTES_MAX - 3], 1);
    check_round_trip(&[BODY_BYTES_MAX], 1);
    check_round_trip(&[BODY_BYTES_MAX + 1], 2);
    check_round_trip(&[10, 3 * BODY_BYTES_MAX, 10, 10], 5);
    check_round_trip(&[2 * BODY_BYTES_MAX, 2 * BODY_BYTES_MAX], 4);
}

#[test]
fn record_bytes_are_frozen() {
    let records = encode(0x0102, 9, &[b"ab".to_vec(), b"".to_vec()]);
    assert_eq!(hex(&records[0].key), "0000000000000102");
    assert_eq!(
        hex(&records[0].value),
        "0100f296c8ad02010000000000000900000000000000020000000000000002000000616200000000"
    );
    let chunked = encode(1, 2, &[vec![7; BODY_BYTES_MAX + 1]]);
    assert_eq!(hex(&chunked[1].key), "000000000000000100000001");
    assert_eq!(
        hex(&chunked[1].value),
        "0101851701ec01000000000000000300000000000000010000000200000007"
    );
}

#[test]
fn any_flipped_bit_is_noticed() {
    let record = encode(5, 1, &[b"hello".to_vec(), b"world".to_vec()]).remove(0);
    for at in 0..record.value.len() {
        for bit in 0..8 {
            let mut damaged = record.value.clone();
            damaged[at] ^= 1 << bit;
            assert!(decode(&record.key, &damaged).is_err(), "bit {bit} of byte {at}");
        }
    }
    assert_eq!(decode(&key_of(6), &record.value), Err(RecordError::Misplaced));
    for length in 0..record.value.len() {
        assert!(decode(&record.key, &record.value[..length]).is_err());
    }
}

#[test]
fn newer_version_is_named() {
    let mut record = encode(5, 1, &[b"hello".to_vec()]).remove(0);
    record.value[0] = 2;
    assert_eq!(
        decode(&record.key, &record.value),
        Err(RecordError::NewerFormat { found: 2, supported: 1 })
    );
}
