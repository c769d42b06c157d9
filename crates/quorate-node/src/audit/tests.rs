//! What is written, what is left out, and what is not done without a line.

use tokio_util::sync::CancellationToken;

use super::writer::{REOPEN_AFTER, RETRY_AFTER};
use super::*;

fn event(principal: Option<&str>) -> Event {
    Event {
        time: "2026-11-28T12:00:00.000Z".to_owned(),
        node: NodeId::new(1).unwrap(),
        request: String::new(),
        principal: principal.map(str::to_owned),
        method: "quorate.v1.Registry/Register",
        subject: Subject { names: vec!["a\n\"b".to_owned()], ..Subject::default() },
        decision: Decision::Denied,
        code: "PERMISSION_DENIED".to_owned(),
        reason: None,
        revision: None,
        from: None,
        left_out: 0,
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn what_was_handed_in_before_the_stop_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let (audit, writer) = Audit::open(path.clone(), false).unwrap();
    let stop = CancellationToken::new();
    for _ in 0..3 {
        audit.tell(event(Some("token:a")), None);
    }
    stop.cancel();
    writer.run(stop).await.unwrap();
    let lines = lines(&path);
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["principal"], "token:a");
    assert_eq!(lines[0]["names"][0], "a\n\"b", "a line is a line");
    assert_eq!(lines[0]["decision"], "denied");
    assert_eq!(lines[0].get("left_out"), None);
}

#[tokio::test]
async fn strangers_fill_no_disk_and_what_is_left_out_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let (audit, writer) = Audit::open(path.clone(), false).unwrap();
    for _ in 0..STRANGERS_MAX + 50 {
        audit.tell(event(None), None);
    }
    audit.tell(event(Some("token:a")), None);
    for _ in 0..QUEUE_MAX {
        let decision = Decision::Allowed;
        audit.tell(Event { decision, ..event(Some("token:b")) }, None);
    }
    let stop = CancellationToken::new();
    stop.cancel();
    writer.run(stop).await.unwrap();
    let lines = lines(&path);
    assert_eq!(lines.len(), QUEUE_MAX);
    let by_a = lines.iter().position(|line| line["principal"] == "token:a").unwrap();
    assert_eq!(by_a, STRANGERS_MAX as usize);
    assert_eq!(lines[by_a]["left_out"], 50);
    let left = audit.left_out.load(Ordering::Relaxed);
    assert_eq!(left, u64::from(STRANGERS_MAX) + 1, "told with the next line");
}

#[tokio::test]
async fn a_node_that_knocks_for_ever_fills_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, mut writer) = Audit::open(dir.path().join("audit"), false).unwrap();
    for _ in 0..PEERS_MAX + 7 {
        audit.tell_of_peer(event(Some("node:3")));
    }
    audit.tell(event(Some("token:a")), None);
    writer.write_waiting().await;
    let lines = lines(&dir.path().join("audit"));
    assert_eq!(lines.len(), PEERS_MAX as usize + 1);
    assert_eq!(lines.last().unwrap()["left_out"], 7);
}

/// A caller with a narrow right wrote as many lines as the disk could take.
#[tokio::test(start_paused = true)]
async fn a_caller_that_is_refused_for_ever_fills_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, mut writer) = Audit::open(dir.path().join("audit"), false).unwrap();
    for _ in 0..KNOWN_MAX + 7 {
        audit.tell(event(Some("token:narrow")), None);
    }
    let decision = Decision::Allowed;
    audit.tell(Event { decision, ..event(Some("token:narrow")) }, None);
    tokio::time::advance(PACE_OVER).await;
    audit.tell(event(Some("token:narrow")), None);
    writer.write_waiting().await;
    let lines = lines(&dir.path().join("audit"));
    assert_eq!(lines.len(), KNOWN_MAX as usize + 2, "what was done has a line in any case");
    assert_eq!(lines[KNOWN_MAX as usize]["left_out"], 7);
    assert_eq!(audit.left_out_ever(), 7, "those that a line has told are counted, too");
}

/// What is left of the disk is for the log.
#[tokio::test]
async fn no_refusal_is_written_to_a_disk_at_its_floor() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit");
    for (reserve, written) in [(0, 2), (u64::MAX, 1)] {
        let (audit, mut writer) = Audit::open(file.clone(), false).unwrap();
        let disk = Disk::new(NodeId::new(1).unwrap(), dir.path().to_owned(), reserve);
        audit.spares(&Arc::new(disk), &file);
        audit.tell(event(Some("token:narrow")), None);
        let decision = Decision::Allowed;
        audit.tell(Event { decision, ..event(Some("token:a")) }, None);
        writer.write_waiting().await;
        let lines = lines(&file);
        assert_eq!(lines.len(), written, "of a reserve of {reserve}");
        assert_eq!(lines.last().unwrap()["principal"], "token:a");
        std::fs::remove_file(&file).unwrap();
    }
    let disk = Disk::new(NodeId::new(1).unwrap(), dir.path().to_owned(), u64::MAX);
    assert!(disk.has(dir.path()) && !disk.has(Path::new("/proc/self/stat")));
}

/// A caller with a narrow right had all places, and others' writes were refused.
#[tokio::test(start_paused = true)]
async fn refusals_leave_room_for_the_lines_of_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, mut writer) = Audit::open(dir.path().join("audit"), true).unwrap();
    for at in 0..QUEUE_MAX {
        if at % KNOWN_MAX as usize == 0 {
            tokio::time::advance(PACE_OVER).await;
        }
        audit.tell(event(Some("token:narrow")), None);
    }
    let places: Vec<_> = (0..QUEUE_MAX - REFUSALS_MAX).map(|_| audit.reserve()).collect();
    assert!(places.iter().all(Result::is_ok), "{:?}", places.iter().find(|it| it.is_err()));
    assert!(audit.reserve().is_err(), "all places are taken");
    // A share that was written is given back.
    writer.write_waiting().await;
    let before = audit.left_out.load(Ordering::Relaxed);
    audit.tell(event(Some("token:narrow")), None);
    assert_eq!(before, (QUEUE_MAX - REFUSALS_MAX) as u64);
    assert_eq!(audit.left_out.load(Ordering::Relaxed), 0, "told with that line");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_moved_away_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let (audit, mut writer) = Audit::open(path.clone(), false).unwrap();
    let mut write = async || {
        audit.tell(event(Some("token:a")), None);
        writer.write_waiting().await;
    };
    write().await;
    std::fs::rename(&path, dir.path().join("audit.1")).unwrap();
    tokio::time::advance(REOPEN_AFTER).await;
    write().await;
    assert_eq!(lines(&path).len(), 1);
    assert_eq!(lines(&dir.path().join("audit.1")).len(), 1);
}

/// A line that is lost takes none of those along that it would have told of.
#[tokio::test]
async fn what_a_lost_line_would_have_said_is_said_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let path = inside.join("audit");
    let (audit, mut writer) = Audit::open(path.clone(), false).unwrap();
    for _ in 0..PEERS_MAX + 7 {
        audit.tell_of_peer(event(Some("node:3")));
    }
    writer.write_waiting().await;
    std::fs::remove_dir_all(&inside).unwrap();
    audit.tell(event(Some("token:a")), None);
    writer.write_waiting().await;
    assert_eq!(audit.left_out_ever(), 8);
    std::fs::create_dir(&inside).unwrap();
    audit.tell(event(Some("token:b")), None);
    writer.write_waiting().await;
    assert_eq!(lines(&path)[0]["left_out"], 8);
}

#[test]
fn a_file_that_cannot_be_written_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Audit::open(dir.path().to_owned(), true).is_err());
    let off = Audit::default();
    assert!(!off.is_on() && off.reserve().unwrap().is_none());
    assert!(off.tell(event(None), None).is_none());
}

/// The directory goes and comes back: what was accepted before is written then, in order, and
/// nothing is accepted meanwhile.
#[tokio::test(start_paused = true)]
async fn no_write_is_without_a_line_where_one_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let path = inside.join("audit");
    let (audit, writer) = Audit::open(path.clone(), true).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(writer.run(stop.clone()));
    let write = async |principal: &'static str, place| {
        let line = audit.tell(event(Some(principal)), place).expect("it waits");
        audit.written(line, Instant::now() + RETRY_AFTER).await
    };
    write("token:a", audit.reserve().unwrap()).await.unwrap();
    let under_way = audit.reserve().unwrap();
    std::fs::remove_dir_all(&inside).unwrap();
    let done = write("token:b", audit.reserve().unwrap()).await.unwrap_err().to_string();
    assert!(done.contains("may have been done") && done.contains("No such file"), "{done}");
    write("token:c", under_way).await.unwrap_err();
    assert!(audit.check().is_err());
    let refused = audit.reserve().unwrap_err().to_string();
    let named = path.display().to_string();
    assert!(refused.contains("nothing was done") && refused.contains(&named), "{refused}");
    assert!(audit.tell(event(Some("token:d")), None).is_none());

    std::fs::create_dir(&inside).unwrap();
    tokio::time::sleep(RETRY_AFTER * 3).await;
    write("token:e", audit.reserve().unwrap()).await.unwrap();
    assert!(audit.check().is_ok());
    stop.cancel();
    running.await.unwrap().unwrap();
    let lines = lines(&path);
    let by: Vec<&str> = lines.iter().map(|line| line["principal"].as_str().unwrap()).collect();
    assert_eq!(by, ["token:b", "token:c", "token:e"], "the first went with its directory");
    assert_eq!(lines[2]["left_out"], 1, "a refusal of then is counted");
}
