//! How many replicas have to move at least, exactly: a min-cost flow of places from groups over their failure domains to
//! servers, where what was there before costs nothing. It is another program than the one it is compared with: no greedy
//! steps, every bound of DESIGN 6 a capacity.

use super::super::Servers;
use std::collections::VecDeque;

/// More than all moves together: what a unit is worth that a lower bound asks for.
const DUE: i64 = 1 << 32;

struct Edge {
    to: usize,
    room: u64,
    cost: i64,
}

/// A network with residual edges: edge `n ^ 1` is the way back of edge `n`.
#[derive(Default)]
struct Network {
    edges: Vec<Edge>,
    out: Vec<Vec<usize>>,
    /// Units that lower bounds ask for.
    due: u64,
}

impl Network {
    fn node(&mut self) -> usize {
        self.out.push(Vec::new());
        self.out.len() - 1
    }

    fn edge(&mut self, from: usize, to: usize, room: u64, cost: i64) {
        for (from, to, room, cost) in [(from, to, room, cost), (to, from, 0, -cost)] {
            self.out[from].push(self.edges.len());
            self.edges.push(Edge { to, room, cost });
        }
    }

    fn between(&mut self, from: usize, to: usize, least: u64, most: u64) {
        self.edge(from, to, least, -DUE);
        self.edge(from, to, most - least, 0);
        self.due += least;
    }

    /// The cheapest way from one node to another (Bellman and Ford, with a queue), as its edges from the end.
    fn cheapest(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        let mut price: Vec<Option<i64>> = vec![None; self.out.len()];
        let (mut came, mut queued) = (vec![0; self.out.len()], vec![false; self.out.len()]);
        let mut queue = VecDeque::from([from]);
        price[from] = Some(0);
        while let Some(node) = queue.pop_front() {
            queued[node] = false;
            for number in &self.out[node] {
                let edge = &self.edges[*number];
                let by = price[node].unwrap() + edge.cost;
                if edge.room > 0 && price[edge.to].is_none_or(|price| by < price) {
                    (price[edge.to], came[edge.to]) = (Some(by), *number);
                    if !std::mem::replace(&mut queued[edge.to], true) {
                        queue.push_back(edge.to);
                    }
                }
            }
        }
        price[to]?;
        let (mut way, mut node) = (Vec::new(), to);
        while node != from {
            way.push(came[node]);
            node = self.edges[came[node] ^ 1].to;
        }
        Some(way)
    }

    /// Sends as much as fits, as cheaply as it goes: how much that is, and the cost.
    fn flow(&mut self, from: usize, to: usize) -> (u64, i64) {
        let (mut units, mut cost) = (0, 0);
        while let Some(way) = self.cheapest(from, to) {
            units += 1;
            for number in way {
                cost += self.edges[number].cost;
                self.edges[number].room -= 1;
                self.edges[number ^ 1].room += 1;
            }
        }
        (units, cost)
    }
}

/// The least number of replicas that move from `before` (those that are servers still) to any layout in which groups are in
/// as many zones, racks and hosts as there are, up to their `width`, and every server has its share, rounded up or down.
pub(super) fn least(servers: &Servers<'_>, before: &[Vec<usize>], width: usize) -> u64 {
    let count = servers.field.all.len();
    let domain = |level: usize, server: usize| match level {
        0 => 0,
        1..=3 => servers.field.domains[server][level - 1],
        _ => server,
    };
    let domains = |level: usize| {
        let mut all: Vec<usize> = (0..count).map(|server| domain(level, server)).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let apart = (1..4).find(|level| domains(*level).len() >= width).unwrap_or(4);
    let width = crate::units::len_u64(width);
    let mut net = Network::default();
    let (source, sink) = (net.node(), net.node());
    let takers: Vec<usize> = (0..count).map(|_| net.node()).collect();
    for (taker, share) in takers.iter().zip(&servers.shares) {
        net.between(*taker, sink, share.floor(), share.ceil());
    }
    for had in before {
        let group = net.node();
        net.edge(source, group, width, 0);
        for outer in domains(apart - 1) {
            let around = net.node();
            net.between(group, around, u64::from(apart > 1), width);
            for inner in domains(apart) {
                let mut inside = (0..count).filter(|s| domain(apart, *s) == inner && domain(apart - 1, *s) == outer);
                let Some(first) = inside.next() else { continue };
                let within = net.node();
                net.edge(around, within, 1, 0);
                for server in std::iter::once(first).chain(inside) {
                    net.edge(within, takers[server], 1, i64::from(!had.contains(&server)));
                }
            }
        }
    }
    let (units, cost) = net.flow(source, sink);
    assert_eq!(units, width * crate::units::len_u64(before.len()), "there is a place for every replica");
    let moves = cost + DUE * i64::try_from(net.due).unwrap();
    u64::try_from(moves).ok().filter(|moves| *moves <= units).expect("shares and domains can be had together")
}
