//! What can be told by adding and subtracting figures, where a total is released again and again and its groups
//! are shown besides.
//!
//! Whoever keeps every release knows how many rows came in each, and how many each shown group has. Put every
//! release and every shown group on one of two sides: the sum of the releases of one side less that of its groups
//! counts exactly the rows whose release and group stand on different sides. So what he can tell are the cuts of a
//! graph: its nodes are the releases and the groups, an edge is the rows of one group that came in one release. The
//! groups that are not shown are one node, the *hidden* ones, since nothing tells them apart.
//!
//! To show one more group takes it out of that node, and the only cuts that are new stand between the two. None of
//! them may be small, or of rows that all chose alike; a cut of no rows tells nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::choices::Choices;

/// Most edges that are kept. A cut through what is forgotten is taken to be smaller than it is.
const EDGES_MAX: usize = 1 << 21;

/// A group of people by its encoded key; `None`: who are in no group.
type Group = Option<Vec<u8>>;

/// The graph of one total and its groups.
pub struct Links {
    /// Least rows of a cut.
    least: u64,
    edges_max: usize,
    edges: Vec<Edge>,
    /// Of each release, its edges.
    releases: Vec<Vec<usize>>,
    parts: Vec<Part>,
    /// Of each group, the part of it that is not shown yet.
    hidden: HashMap<Group, usize>,
    /// The groups' rows when they were last noted.
    noted: HashMap<Group, Choices>,
    /// Whether a release was made since of which it is not known whose rows came in it.
    missed: bool,
    /// Choices by number.
    choices: Vec<Vec<u8>>,
}

/// Rows that came to a group between two times that it was shown.
#[derive(Default)]
struct Part {
    edges: Vec<usize>,
    shown: bool,
    /// Whether some of its edges are not known.
    is_torn: bool,
}

struct Edge {
    release: usize,
    part: usize,
    rows: u64,
    /// What all these rows chose, if they chose alike.
    alike: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Node {
    Release(usize),
    Part(usize),
}

/// An edge, and whether it is gone along from its part to its release.
type Step = (usize, bool);

impl Links {
    /// No release yet. A cut of fewer than `least` rows must not be told.
    pub fn new(least: u64) -> Links {
        Links::bounded(least, EDGES_MAX)
    }

    /// Keeps no more edges than this.
    pub(super) fn bounded(least: u64, edges_max: usize) -> Links {
        Links {
            least,
            edges_max,
            edges: Vec::new(),
            releases: Vec::new(),
            parts: Vec::new(),
            hidden: HashMap::new(),
            noted: HashMap::new(),
            missed: false,
            choices: Vec::new(),
        }
    }

    /// Notes a release: how many rows each group has now, by choice; nothing if that is not known.
    pub fn note(&mut self, now: Option<HashMap<Group, Choices>>) {
        let Some(now) = now else {
            self.missed = true;
            return;
        };
        let noted = std::mem::replace(&mut self.noted, now);
        let missed = std::mem::take(&mut self.missed);
        let groups: HashSet<&Group> = self.noted.keys().chain(noted.keys()).collect();
        let none = Choices::default();
        let moved: Vec<(Group, Choices)> = groups
            .into_iter()
            .map(|group| {
                let (now, then) = (self.noted.get(group), noted.get(group));
                (group.clone(), now.unwrap_or(&none).minus(then.unwrap_or(&none)))
            })
            .filter(|(_, moved)| moved.total() > 0)
            .collect();
        let release = self.releases.len();
        let mut of_release = Vec::new();
        for (group, moved) in moved {
            let part = self.part(group);
            if missed {
                self.parts[part].is_torn = true;
                continue;
            }
            let alike = moved.alike().map(|choice| self.number(choice));
            of_release.push(self.edges.len());
            self.parts[part].edges.push(self.edges.len());
            self.edges.push(Edge { release, part, rows: moved.total(), alike });
        }
        self.releases.push(of_release);
        if self.edges.len() > self.edges_max {
            self.forget();
        }
    }

    /// Which of these groups may be shown as they are now, one after the other.
    pub fn showable(&self, groups: &[Vec<u8>]) -> Vec<bool> {
        let mut shown = HashSet::new();
        groups
            .iter()
            .map(|group| {
                let Some(part) = self.hidden.get(&Some(group.clone())) else { return !self.missed };
                shown.insert(*part);
                let may = !self.missed && self.is_held(*part, &shown);
                if !may {
                    shown.remove(part);
                }
                may
            })
            .collect()
    }

    /// Notes that these groups are shown.
    pub fn show(&mut self, groups: &[Vec<u8>]) {
        for group in groups {
            if let Some(part) = self.hidden.remove(&Some(group.clone())) {
                self.parts[part].shown = true;
            }
        }
    }

    fn part(&mut self, group: Group) -> usize {
        let parts = &mut self.parts;
        *self.hidden.entry(group).or_insert_with(|| {
            parts.push(Part::default());
            parts.len() - 1
        })
    }

    fn number(&mut self, choice: &[u8]) -> usize {
        self.choices.iter().position(|known| known == choice).unwrap_or_else(|| {
            self.choices.push(choice.to_vec());
            self.choices.len() - 1
        })
    }

    /// Whether no cut between a part and those that stay hidden tells too much. `shown`: it, and others that are to be
    /// shown as well.
    fn is_held(&self, part: usize, shown: &HashSet<usize>) -> bool {
        let is_hidden = |part: usize| !self.parts[part].shown && !shown.contains(&part);
        // The least cut is the greatest flow: rows along ways that share none.
        let mut flows: HashMap<usize, i64> = HashMap::new();
        let mut held = 0;
        while held < self.least {
            let room = |(edge, forward): Step| {
                let flow = flows.get(&edge).copied().unwrap_or_default();
                self.edges[edge].rows as i64 - if forward { flow } else { -flow }
            };
            match self.way(part, &is_hidden, &|step| room(step) > 0) {
                Ok(way) => {
                    let more = way.iter().map(|step| room(*step)).min().unwrap_or_default();
                    for (edge, forward) in way {
                        *flows.entry(edge).or_default() += if forward { more } else { -more };
                    }
                    held += more as u64;
                }
                // Nothing ties it to the hidden ones: to show it tells nothing that is not known already.
                Err(reached) if held == 0 => return !reached.iter().any(|node| self.is_torn(*node)),
                Err(_) => return false,
            }
        }
        (0..self.choices.len()).all(|choice| {
            let by_others = |(edge, _): Step| self.edges[edge].alike != Some(choice);
            self.way(part, &is_hidden, &by_others).is_ok()
        })
    }

    /// The shortest way from a part to one that is the goal, by the steps that may be taken; otherwise all nodes that
    /// can be reached.
    fn way(
        &self,
        from: usize,
        is_goal: &dyn Fn(usize) -> bool,
        may: &dyn Fn(Step) -> bool,
    ) -> Result<Vec<Step>, Vec<Node>> {
        let begin = Node::Part(from);
        let mut came: HashMap<Node, Option<Step>> = HashMap::from([(begin, None)]);
        let mut queue = VecDeque::from([begin]);
        while let Some(node) = queue.pop_front() {
            if let Node::Part(part) = node
                && node != begin
                && is_goal(part)
            {
                let back = |node: &Node| {
                    let (edge, forward) = came[node]?;
                    let Edge { release, part, .. } = self.edges[edge];
                    Some(((edge, forward), if forward { Node::Part(part) } else { Node::Release(release) }))
                };
                let steps = std::iter::successors(back(&node), |(_, node)| back(node));
                return Ok(steps.map(|(step, _)| step).collect());
            }
            let (edges, forward) = match node {
                Node::Part(part) => (&self.parts[part].edges, true),
                Node::Release(release) => (&self.releases[release], false),
            };
            for &edge in edges {
                let Edge { release, part, .. } = self.edges[edge];
                let next = if forward { Node::Release(release) } else { Node::Part(part) };
                if may((edge, forward)) && !came.contains_key(&next) {
                    came.insert(next, Some((edge, forward)));
                    queue.push_back(next);
                }
            }
        }
        Err(came.into_keys().collect())
    }

    fn is_torn(&self, node: Node) -> bool {
        matches!(node, Node::Part(part) if self.parts[part].is_torn)
    }

    /// Forgets the older half of the edges.
    fn forget(&mut self) {
        let first = self.edges[self.edges.len() / 2].release;
        let old = std::mem::take(&mut self.edges);
        let parts = std::mem::take(&mut self.parts);
        let mut kept: BTreeMap<usize, usize> = BTreeMap::new();
        for (number, part) in parts.iter().enumerate() {
            if !part.shown || part.edges.iter().any(|edge| old[*edge].release >= first) {
                kept.insert(number, kept.len());
                let is_torn = part.is_torn || part.edges.iter().any(|edge| old[*edge].release < first);
                self.parts.push(Part { edges: Vec::new(), shown: part.shown, is_torn });
            }
        }
        self.hidden.values_mut().for_each(|part| *part = kept[part]);
        self.releases = vec![Vec::new(); self.releases.len() - first];
        for edge in old.into_iter().filter(|edge| edge.release >= first) {
            let edge = Edge { release: edge.release - first, part: kept[&edge.part], ..edge };
            self.releases[edge.release].push(self.edges.len());
            self.parts[edge.part].edges.push(self.edges.len());
            self.edges.push(edge);
        }
    }
}
