//! A tar archive in memory: plain files in the ustar format (POSIX.1-1988), which every tar reads.

const BLOCK: usize = 512;
/// A longer name has no place in the head.
const NAME_MAX: usize = 100;

/// Files, one after the other.
#[derive(Debug, Default)]
pub(super) struct Archive(Vec<u8>);

impl Archive {
    /// Adds a file that its owner can read. A name that is too long is cut.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) {
        self.0.extend_from_slice(&head(name, content.len()));
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    /// The whole, which ends with two empty blocks.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

fn head(name: &str, bytes: usize) -> [u8; BLOCK] {
    let mut head = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{bytes:011o}\0"));
    put(136, "00000000000\0");
    // The checksum is taken with spaces in its place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    let name = &name.as_bytes()[..name.len().min(NAME_MAX)];
    head[..name.len()].copy_from_slice(name);
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_it() {
        let long = format!("logs/{}", "l".repeat(120));
        let mut archive = Archive::default();
        archive.add("manifest.json", b"{}\n");
        archive.add("empty", b"");
        archive.add(&long, &[b'x'; 1_000]);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % BLOCK, 0);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.tar"), bytes).unwrap();
        let ran = Command::new("tar").args(["-xf", "a.tar"]).current_dir(dir.path()).output();
        let ran = ran.unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!(read("manifest.json"), b"{}\n");
        assert_eq!(read("empty"), b"");
        assert_eq!(read(&long[..100]), [b'x'; 1_000]);
    }
}
