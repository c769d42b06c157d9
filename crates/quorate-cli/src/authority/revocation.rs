//! Certificates that are no longer to be taken: the CA's list of their serial numbers.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::{Authority, CA_LIFETIME, SINCE, ca, ca_file, contains, der, now};
use crate::files::{self, Mode};

/// More than some lists made within the same second, whose numbers are times.
const BEHIND_MIN: Duration = Duration::from_secs(60);

/// The list of what is revoked.
#[derive(Debug)]
pub(crate) struct Revoked {
    pub(crate) list: PathBuf,
    /// How many are on it.
    pub(crate) certificates: usize,
    /// So far the clock is behind the list before, by which this one was numbered then.
    pub(crate) clock_behind: Option<Duration>,
}

impl Authority {
    /// Puts a certificate on the list of revoked ones, and writes the whole list. The serial
    /// numbers of earlier ones are kept beside it; one that the list before has stays on it.
    ///
    /// # Errors
    /// What cannot be read or written, or is not of this CA; in words.
    pub(crate) fn revoke(&self, dir: &Path, certificates: &[PathBuf]) -> Result<Revoked, String> {
        self.revoke_at(dir, certificates, now())
    }

    pub(super) fn revoke_at(
        &self,
        dir: &Path,
        certificates: &[PathBuf],
        now: Duration,
    ) -> Result<Revoked, String> {
        let (record, list) = (dir.join("ca.revoked"), dir.join("ca.crl"));
        let _one_at_a_time = lock(dir)?;
        let mut known = read(&record)?;
        for serial in of_list(&list)? {
            add(&mut known, &serial, now);
        }
        for certificate in certificates {
            let bad = |what: &str| format!("{}: {what}", certificate.display());
            let pem = std::fs::read_to_string(certificate).map_err(|e| bad(&e.to_string()))?;
            let der = der::of_pem(&pem, der::CERTIFICATE)
                .ok_or_else(|| bad("there is no certificate in it"))?;
            let own = std::fs::read_to_string(ca_file(dir)).ok();
            if own.and_then(|pem| der::of_pem(&pem, der::CERTIFICATE)).as_ref() == Some(&der) {
                return Err(bad(
                    "that is the CA itself, which no list of its own can revoke\n  next: make another CA: docs/security.md#rotation",
                ));
            }
            let key = self.issuer.key();
            let ours = ca(&self.cluster_name, key)?.key_identifier(key);
            if !contains(&der, &ours) {
                return Err(bad("it was not issued by this CA"));
            }
            let serial = der::serial(&der).ok_or_else(|| bad("it is no certificate"))?;
            add(&mut known, serial, now);
        }
        let revoked = known.lines().map(|line| {
            parse_revoked(line).ok_or_else(|| format!("{}: \"{line}\"", record.display()))
        });
        let revoked: Vec<_> = revoked.collect::<Result<_, _>>()?;
        let certificates = revoked.len();
        // Nodes refuse a list with a lower number or an earlier time than the one that they have:
        // where the clock was set back, these go on from the last list.
        let last = last_number(&list).unwrap_or_default();
        let number = now.max(last + Duration::from_secs(1));
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 1) + number.saturating_sub(SINCE),
            next_update: date_time_ymd(1970, 1, 1) + number + CA_LIFETIME,
            crl_number: SerialNumber::from(number.as_secs()),
            issuing_distribution_point: None,
            revoked_certs: revoked,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = params.signed_by(&self.issuer).and_then(|list| list.pem());
        let signed = signed.map_err(|error| error.to_string())?;
        files::write(&record, known.as_bytes(), Mode::Public, true)?;
        files::write(&list, signed.as_bytes(), Mode::Public, true)?;
        let clock_behind = last.checked_sub(now).filter(|behind| *behind >= BEHIND_MIN);
        Ok(Revoked { list, certificates, clock_behind })
    }
}

/// Two at once would write one's certificates each. Held until it is dropped; not on file systems
/// that know no locks.
fn lock(dir: &Path) -> Result<File, String> {
    let dir_file = File::open(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let _no_locks_here = dir_file.lock();
    Ok(dir_file)
}

/// Empty: it is not there.
fn read(path: &Path) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// The serial numbers on the list that is there: of a directory that was moved without the record
/// of them, what was revoked must not be taken again.
fn of_list(list: &Path) -> Result<Vec<Vec<u8>>, String> {
    let text = read(list)?;
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let der = der::of_pem(&text, der::LIST);
    der.as_deref().and_then(der::revoked).ok_or_else(|| {
        format!(
            "{}: it is no list of revoked certificates; take it away if it is none",
            list.display()
        )
    })
}

/// Adds a line for a serial number, if there is none.
fn add(known: &mut String, serial: &[u8], now: Duration) {
    let serial: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    if !known.lines().any(|line| line.starts_with(&format!("{serial} "))) {
        known.push_str(&format!("{serial} {}\n", now.as_secs()));
    }
}

/// Of the list that is there: when it was made, as seconds since 1970, or just after the one before
/// it. `None`: there is none that can be read.
fn last_number(list: &Path) -> Option<Duration> {
    let der = der::of_pem(&std::fs::read_to_string(list).ok()?, der::LIST)?;
    // No clock goes further (the year 9999), and no time is to be added up beyond that.
    const LAST: u64 = 253_402_300_799;
    der::list_number(&der)
        .filter(|number| *number < LAST - CA_LIFETIME.as_secs())
        .map(Duration::from_secs)
}

/// A line of `ca.revoked`: the serial number in hexadecimal, and when it was revoked.
fn parse_revoked(line: &str) -> Option<RevokedCertParams> {
    let (serial, since_1970) = line.split_once(' ')?;
    let byte = |at| u8::from_str_radix(serial.get(at..at + 2)?, 16).ok();
    let serial: Option<Vec<u8>> = (0..serial.len()).step_by(2).map(byte).collect();
    Some(RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial?),
        revocation_time: date_time_ymd(1970, 1, 1) + Duration::from_secs(since_1970.parse().ok()?),
        reason_code: None,
        invalidity_date: None,
    })
}
