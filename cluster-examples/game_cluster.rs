//! A game's servers by type: frontends ("connector"), to which players are connected, and backends
//! ("room"), which keep the players' state. A frontend listens to rooms that come and go, holds a
//! connection to each, and routes a player to the same room as long as that is there; a room finds
//! the player's frontend by its id. Ends by itself, and with an error if a player was moved without
//! need or lost. While `quorate dev` runs:
//!
//!     cargo run --example game_cluster
//!
//! QUORATE_NODES=host:port,host:port,... names another cluster. Every server has a client of its
//! own, as it would as a process; killing a node of the registry meanwhile makes no difference.

#![allow(clippy::print_stdout, reason = "an example tells its story")]

#[path = "shared/registry.rs"]
mod registry;
#[path = "shared/text.rs"]
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use quorate_client::{
    Client, Discovery, DiscoveryEvent, Error, InstanceBuilder, Listener, Registration, Served,
};
use registry::{PATIENCE, connect, shows};
use text::{Connections, Text};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

const REALM: &str = "game-cluster-example";
const OTHER_REALM: &str = "game-cluster-example-2";
const PLAYERS: usize = 24;
/// A killed room is missed for this long. Short, so that the story is; 15 s unless set.
const TTL: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!("Two frontends and three rooms start, and a room of another realm");
    let frontends = [Frontend::start("connector-1").await?, Frontend::start("connector-2").await?];
    let mut rooms = BTreeMap::new();
    for id in ["room-1", "room-2", "room-3"] {
        rooms.insert(id, room(REALM, id).await?);
    }
    let elsewhere = room(OTHER_REALM, "room-9").await?;
    know(&frontends, &["room-1", "room-2", "room-3"]).await?;
    let mut players = Players::connect().await?;
    players.all_say_hello().await?;
    let moved = players.all_say_hello().await?;
    println!("  {PLAYERS} players: {}", players.by_room());
    ensure!(moved.is_empty() && players.by_room.len() == 3, "each stays where it is: {moved:?}");

    println!("\nroom-4 joins");
    rooms.insert("room-4", room(REALM, "room-4").await?);
    know(&frontends, &["room-1", "room-2", "room-3", "room-4"]).await?;
    let moved = players.all_say_hello().await?;
    println!("  {} players have moved to it: {}", moved.len(), players.by_room());
    ensure!(!moved.is_empty() && moved.iter().all(|(_, to)| to == "room-4"), "only there");

    println!("\nroom-2 is killed: it says nothing, and its lease runs out");
    let lost = players.by_room.get("room-2").context("the room had players")?.clone();
    rooms.remove("room-2").context("it runs")?.ended.abort();
    let gone = know(&frontends, &["room-1", "room-3", "room-4"]);
    let moved = players.others_play_on(gone, &lost).await?;
    println!("  {} players of other rooms played on", PLAYERS - lost.len());
    ensure!(moved.is_empty(), "they are not concerned: {moved:?}");
    let moved = players.all_say_hello().await?;
    println!("  its {} players have moved: {}", moved.len(), players.by_room());
    ensure!(moved.iter().map(|(player, _)| *player).eq(lost), "they, and no others: {moved:?}");

    println!("\nroom-3 closes: it drains, and leaves when nobody needs it");
    let lost = players.by_room.get("room-3").context("the room had players")?.clone();
    let closing = rooms.remove("room-3").context("it runs")?.stop();
    let moved = players.others_play_on(closing, &BTreeSet::new()).await?;
    println!("  its {} players have moved, with no failed call", moved.len());
    ensure!(moved.iter().map(|(player, _)| *player).eq(lost), "they, and no others: {moved:?}");

    let told: usize = frontends.iter().map(|frontend| frontend.state.inbox().len()).sum();
    println!("\nThe rooms have welcomed players {told} times, by the frontend of each");
    ensure!(told == players.entered, "expected {}", players.entered);
    let servers = rooms.into_values().chain(frontends.map(|frontend| frontend.server));
    for server in servers.chain([elsewhere]) {
        server.stop().await?;
    }
    println!("All servers have stopped");
    Ok(())
}

type Ended = Result<Served<Result<(), tonic::transport::Error>>, Error>;

/// The process of a server of any type.
struct Server {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Ended>,
}

impl Server {
    async fn start<A, F>(client: &Client, kind: &str, id: &str, answer: A) -> anyhow::Result<Self>
    where
        A: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let me = InstanceBuilder::new(kind, id).endpoint("grpc", "http://{addr}");
        let me = Registration::new(me);
        let me = if id == "room-2" { me.ttl(TTL) } else { me };
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = client.serve(me).until(stopped.map(|_told_or_dropped| ()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let run = serving.run(listener, |listener, stop| text::serve(listener, stop, answer));
        let server = Self { stop, ended: tokio::spawn(run) };
        shows(&client.discover(kind)?, |shown| shown.get(id).is_some()).await?;
        Ok(server)
    }

    /// As by SIGTERM.
    async fn stop(self) -> anyhow::Result<()> {
        drop(self.stop);
        let served = timeout(PATIENCE, self.ended).await.context("a server does not stop")???;
        ensure!(matches!(served.output, Some(Ok(()))) && served.deregistered.is_ok(), "{served}");
        Ok(())
    }
}

/// A backend: counts what each of its players says, and welcomes the new ones.
async fn room(realm: &str, id: &'static str) -> anyhow::Result<Server> {
    let client = connect(realm).await?;
    let frontends = client.discover("connector")?;
    timeout(PATIENCE, frontends.synced()).await.context("no registry answers; is it running?")?;
    let (connections, state) = (Connections::default(), Mutex::new(HashMap::new()));
    let shared = Arc::new((frontends, connections, state));
    let answer = move |text: String| {
        let shared = shared.clone();
        async move {
            let (frontends, connections, state) = &*shared;
            let (player, frontend) = text.split_once(" by ").unwrap_or((&text, ""));
            let said = {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let said: &mut u32 = state.entry(player.to_owned()).or_default();
                *said += 1;
                *said
            };
            if said == 1 {
                let frontend = frontends.current().get(frontend).cloned();
                let frontend = frontend.ok_or_else(|| Status::not_found("no such frontend"))?;
                connections.to(&frontend)?.say(format!("push {player} welcome to {id}")).await?;
            }
            Ok(format!("{id} {said}"))
        }
    };
    Server::start(&client, "room", id, answer).await
}

/// What a frontend knows of rooms, and what they have sent it.
struct State {
    rooms: watch::Sender<BTreeMap<String, Text>>,
    inbox: Mutex<Vec<String>>,
}

impl State {
    fn inbox(&self) -> MutexGuard<'_, Vec<String>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The room of a player: of all pairs of him with a room, that with the highest hash
    /// (rendezvous hashing). So he moves when his room goes, or a new one suits him better. (All
    /// frontends must hash alike.)
    fn room_of(&self, player: &str) -> Result<Text, Status> {
        let suits = |room: &str| {
            let mut hasher = DefaultHasher::new();
            (player, room).hash(&mut hasher);
            hasher.finish()
        };
        let rooms = self.rooms.borrow();
        let room = rooms.iter().max_by_key(|(id, _)| suits(id));
        room.map(|(_, text)| text.clone()).ok_or_else(|| Status::unavailable("there is no room"))
    }
}

/// The process of a frontend.
struct Frontend {
    state: Arc<State>,
    server: Server,
    _listening: AbortOnDropHandle<()>,
}

impl Frontend {
    async fn start(id: &'static str) -> anyhow::Result<Self> {
        let client = connect(REALM).await?;
        let rooms = watch::Sender::new(BTreeMap::new());
        let state = Arc::new(State { rooms, inbox: Mutex::default() });
        let listening = listen(id, client.discover("room")?.listen(), state.clone());
        let answers = state.clone();
        let answer = move |text: String| {
            let state = answers.clone();
            async move {
                if let Some(push) = text.strip_prefix("push ") {
                    state.inbox().push(push.to_owned());
                    return Ok(String::new());
                }
                state.room_of(&text)?.say(format!("{text} by {id}")).await
            }
        };
        let server = Server::start(&client, "connector", id, answer).await?;
        Ok(Self { state, server, _listening: AbortOnDropHandle::new(tokio::spawn(listening)) })
    }
}

/// A connection for each room, from when it comes to when it goes.
async fn listen(frontend: &str, mut rooms: Listener, state: Arc<State>) {
    let connections = Connections::default();
    loop {
        let (change, id) = match rooms.next().await {
            DiscoveryEvent::Added(room) | DiscoveryEvent::Updated(room) => {
                let Ok(text) = connections.to(&room) else { continue };
                (Some(text), room.id.clone())
            }
            DiscoveryEvent::Removed { instance, .. } => (None, instance.id.clone()),
            _ => continue,
        };
        println!("  {frontend}: {id} {}", if change.is_some() { "is there" } else { "is gone" });
        state.rooms.send_modify(|rooms| match change {
            Some(text) => drop(rooms.insert(id, text)),
            None => drop(rooms.remove(&id)),
        });
    }
}

/// Waits until all frontends know these rooms and no others.
async fn know(frontends: &[Frontend], rooms: &[&str]) -> anyhow::Result<()> {
    for frontend in frontends {
        let mut known = frontend.state.rooms.subscribe();
        let known = known.wait_for(|known| known.keys().eq(rooms));
        timeout(PATIENCE, known).await.with_context(|| format!("not known: {rooms:?}"))??;
    }
    Ok(())
}

/// The players, each on one of the frontends, and where they are.
struct Players {
    frontends: Vec<Text>,
    /// Each player's room, and what he has said in it.
    at: BTreeMap<usize, (String, u32)>,
    by_room: BTreeMap<String, BTreeSet<usize>>,
    /// How often one came into a room.
    entered: usize,
}

impl Players {
    async fn connect() -> anyhow::Result<Self> {
        let frontends: Discovery = connect(REALM).await?.discover("connector")?;
        let connections = Connections::default();
        let frontends = frontends.usable().await?;
        let frontends = frontends.iter().map(|frontend| connections.to(frontend));
        let frontends = frontends.collect::<Result<_, _>>()?;
        let (at, by_room) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { frontends, at, by_room, entered: 0 })
    }

    fn by_room(&self) -> String {
        let rooms = self.by_room.iter().map(|(id, players)| format!("{} in {id}", players.len()));
        rooms.collect::<Vec<_>>().join(", ")
    }

    /// The players that have moved, and where to.
    async fn all_say_hello(&mut self) -> anyhow::Result<Vec<(usize, String)>> {
        self.say_hello(&BTreeSet::new()).await
    }

    async fn say_hello(
        &mut self,
        except: &BTreeSet<usize>,
    ) -> anyhow::Result<Vec<(usize, String)>> {
        let mut moved = Vec::new();
        for player in (0..PLAYERS).filter(|player| !except.contains(player)) {
            let at = player % self.frontends.len();
            let answer = self.frontends[at].say(format!("player-{player}")).await?;
            let (room, said) = answer.split_once(' ').context("two words")?;
            let said: u32 = said.parse()?;
            match self.at.insert(player, (room.to_owned(), said)) {
                Some((before, n)) if before == room => {
                    ensure!(said == n + 1, "{room} remembers player {player}: {n}, then {said}");
                    continue;
                }
                Some(_) => moved.push((player, room.to_owned())),
                None => {}
            }
            self.entered += 1;
        }
        self.by_room.clear();
        for (player, (room, _)) in &self.at {
            self.by_room.entry(room.clone()).or_default().insert(*player);
        }
        Ok(moved)
    }

    /// The others go on until this is over, and once more.
    async fn others_play_on(
        &mut self,
        over: impl Future<Output = anyhow::Result<()>>,
        except: &BTreeSet<usize>,
    ) -> anyhow::Result<Vec<(usize, String)>> {
        let mut moved = Vec::new();
        let mut over = std::pin::pin!(over.fuse());
        loop {
            let is_over = over.as_mut().now_or_never().transpose()?.is_some();
            moved.extend(self.say_hello(except).await?);
            if is_over {
                moved.sort();
                return Ok(moved);
            }
        }
    }
}
