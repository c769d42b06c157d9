//! Each write is answered what it names as its answer.

use super::*;

impl Transcript {
    fn answer<W: Write>(&mut self, write: W) -> W::Answer {
        let reply = self.registry.apply(&Command::new(Clock(0), write.into())).reply;
        W::read(reply.clone()).unwrap_or_else(|| panic!("the reply is {reply:?}"))
    }
}

#[test]
fn each_write_gets_the_answer_that_it_names() {
    let mut t = Transcript::default();
    let granted = Registered { lease: LeaseId(1), ttl: Ttl::DEFAULT, incarnation: Incarnation(7) };
    assert_eq!(t.answer(register("web/a", 7)), granted);
    assert_eq!(t.answer(Renew(vec![LeaseId(1), LeaseId(9)])), [LeaseId(9)]);
    let value = Override::new(Some(Status::Draining), None, "because".to_owned()).unwrap();
    t.answer(Update { weight: Some(3), ..update("web/a") });
    t.answer(SetOverride { key: key("web/a"), value: Some(value) });
    assert_eq!(t.answer(Deregister::Lease(LeaseId(1))), 1);
}

#[test]
fn the_reply_to_another_write_is_none() {
    assert_eq!(Update::read(Reply::Done), None);
    assert_eq!(SetOverride::read(Reply::Updated), None);
    assert_eq!(Register::read(Reply::Rejected(Rejection::NothingToKeep)), None);
}
