//! Plausible British people. Person `i` of a seed is a function of both numbers alone, so a run can be
//! repeated, and continued where it stopped.

use chrono::{Days, Months, NaiveDate};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::places::PLACES;

/// A candidate, a row of `candidates`.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub candidate_id: String,
    pub candidate_name: String,
    pub party_affiliation: String,
    pub biography: String,
    pub campaign_platform: String,
    pub photo_url: String,
}

/// A voter, a row of `voters`. As JSON it is the reference's message on `voters_topic`.
#[derive(Clone, Debug, Serialize)]
pub struct Voter {
    pub voter_id: String,
    pub voter_name: String,
    pub date_of_birth: String,
    pub gender: &'static str,
    pub nationality: &'static str,
    pub registration_number: String,
    pub address: Address,
    pub email: String,
    pub phone_number: String,
    pub cell_number: String,
    pub picture: String,
    pub registered_age: u32,
}

#[derive(Clone, Debug, Serialize)]
pub struct Address {
    pub street: String,
    pub city: &'static str,
    /// The county; the reference's name for it.
    pub state: &'static str,
    pub country: &'static str,
    pub postcode: String,
}

const AGE_MIN: u32 = 18;

const WOMEN: [&str; 40] = [
    "Olivia",
    "Amelia",
    "Isla",
    "Ava",
    "Lily",
    "Mia",
    "Grace",
    "Freya",
    "Florence",
    "Emily",
    "Sophie",
    "Ella",
    "Poppy",
    "Charlotte",
    "Evelyn",
    "Phoebe",
    "Alice",
    "Matilda",
    "Rosie",
    "Daisy",
    "Margaret",
    "Susan",
    "Patricia",
    "Christine",
    "Jean",
    "Dorothy",
    "Helen",
    "Karen",
    "Nicola",
    "Rachel",
    "Priya",
    "Aisha",
    "Fatima",
    "Zainab",
    "Mei",
    "Chloe",
    "Megan",
    "Bethan",
    "Eilidh",
    "Niamh",
];
const MEN: [&str; 40] = [
    "Oliver", "George", "Arthur", "Noah", "Leo", "Oscar", "Theo", "Freddie", "Archie", "Henry", "Thomas",
    "William", "James", "Edward", "Joshua", "Daniel", "Samuel", "Benjamin", "Harry", "Jack", "David", "John",
    "Peter", "Michael", "Alan", "Kenneth", "Brian", "Graham", "Stephen", "Andrew", "Mohammed", "Arjun",
    "Imran", "Kwame", "Wei", "Callum", "Rhys", "Gareth", "Hamish", "Declan",
];
const SURNAMES: [&str; 60] = [
    "Smith",
    "Jones",
    "Taylor",
    "Brown",
    "Williams",
    "Wilson",
    "Johnson",
    "Davies",
    "Patel",
    "Robinson",
    "Wright",
    "Thompson",
    "Evans",
    "Walker",
    "White",
    "Roberts",
    "Green",
    "Hall",
    "Wood",
    "Jackson",
    "Clarke",
    "Khan",
    "Ali",
    "Begum",
    "Hughes",
    "Edwards",
    "Harris",
    "Lewis",
    "Martin",
    "Cooper",
    "Ward",
    "Turner",
    "Hill",
    "Moore",
    "Clark",
    "Harrison",
    "Scott",
    "Young",
    "Morris",
    "Watson",
    "Mitchell",
    "Anderson",
    "Phillips",
    "Lee",
    "Bell",
    "Murphy",
    "Campbell",
    "Stewart",
    "MacDonald",
    "Fraser",
    "O'Neill",
    "Kelly",
    "Singh",
    "Shah",
    "Chen",
    "Owusu",
    "Adeyemi",
    "Fletcher",
    "Ashworth",
    "Pemberton",
];
const STREETS: [&str; 20] = [
    "High Street",
    "Station Road",
    "Church Lane",
    "Victoria Road",
    "Park Avenue",
    "Mill Lane",
    "London Road",
    "The Crescent",
    "Queen Street",
    "King Street",
    "Manor Road",
    "Grange Road",
    "Springfield Road",
    "Albert Road",
    "School Lane",
    "Chapel Street",
    "Windsor Close",
    "Orchard Way",
    "Meadow Drive",
    "Beech Grove",
];
const PARTIES: [&str; 12] = [
    "Management Party",
    "Savior Party",
    "Tech Republic Party",
    "Commons Alliance",
    "Green Valley Party",
    "Harbour Union",
    "Northern Voice",
    "Civic Reform Party",
    "Fair Rents Party",
    "Heritage League",
    "Open Rivers Party",
    "New Horizon Party",
];
const BACKGROUNDS: [&str; 8] = [
    "a former head teacher",
    "a general practitioner",
    "an engineer on the railways",
    "a small-business owner",
    "a county councillor of twelve years",
    "a barrister",
    "a farmer",
    "a nurse and union representative",
];
const CAUSES: [&str; 8] = [
    "buses that run in the evening",
    "shorter waiting lists",
    "homes that first-time buyers can afford",
    "cleaner rivers",
    "apprenticeships in every town",
    "honest public accounts",
    "safer streets",
    "lower energy bills",
];

/// Candidate `i` of `seed`. The first three stand for the reference's parties.
pub fn candidate(seed: u64, i: u32) -> Candidate {
    let mut rng = rng(seed, 1 << 63 | u64::from(i));
    let candidate_id = id(&mut rng);
    let (candidate_name, gender) = name(&mut rng);
    let background = pick(&BACKGROUNDS, &mut rng);
    let first = rng.random_range(0..CAUSES.len());
    let second = (first + rng.random_range(1..CAUSES.len())) % CAUSES.len();
    let town = pick(pick(&PLACES, &mut rng).towns, &mut rng).0;
    Candidate {
        photo_url: format!("/portraits/candidate/{gender}-{candidate_id}.svg"),
        party_affiliation: match PARTIES.get(i as usize) {
            Some(party) => (*party).into(),
            None => format!("Independent {}", i as usize - PARTIES.len() + 1),
        },
        biography: format!("{candidate_name} is {background} and lives in {town}."),
        campaign_platform: format!("Stands for {} and {}.", CAUSES[first], CAUSES[second]),
        candidate_id,
        candidate_name,
    }
}

/// Voter `i` of `seed`.
pub fn voter(seed: u64, i: u64) -> Voter {
    let mut rng = rng(seed, i);
    let voter_id = id(&mut rng);
    let (voter_name, gender) = name(&mut rng);
    // Younger adults are more; few are past ninety.
    let registered_age = AGE_MIN + rng.random_range(0..45) + rng.random_range(0..35);
    let (county, (city, area)) = home(&mut rng);
    let letter = |rng: &mut StdRng| *pick(b"ABDEFGHJLNPQRSTUWXYZ", rng) as char;
    let postcode = format!(
        "{area}{} {}{}{}",
        rng.random_range(1..20),
        rng.random_range(1..10),
        letter(&mut rng),
        letter(&mut rng)
    );
    let mailbox = voter_name.to_lowercase().replace(' ', ".").replace('\'', "");
    Voter {
        date_of_birth: date_of_birth(registered_age, rng.random_range(0..364)),
        gender,
        nationality: "British",
        registration_number: format!("{:03}{:07}", rng.random_range(0..1000), i),
        address: Address {
            street: format!("{} {}", rng.random_range(1..200), pick(&STREETS, &mut rng)),
            city,
            state: county,
            country: "United Kingdom",
            postcode,
        },
        // example.org is set aside for what must reach nobody, and so are these numbers.
        email: format!("{mailbox}{}@example.org", rng.random_range(1..1000)),
        phone_number: format!("01632 960{:03}", rng.random_range(0..1000)),
        cell_number: format!("07700 900{:03}", rng.random_range(0..1000)),
        picture: format!("/portraits/voter/{gender}-{voter_id}.svg"),
        registered_age,
        voter_name,
        voter_id,
    }
}

/// County, town and postcode area of someone, by how many live there.
fn home(rng: &mut StdRng) -> (&'static str, (&'static str, &'static str)) {
    let towns = || PLACES.iter().flat_map(|place| place.towns.iter().map(|town| (place.name, *town)));
    let mut left = rng.random_range(0..towns().map(|(_, town)| town.2).sum::<u32>());
    let found = towns().find(|(_, town)| {
        let here = left < town.2;
        left = left.saturating_sub(town.2);
        here
    });
    let (county, (city, area, _)) = found.expect("invariant: the number is below the sum");
    (county, (city, area))
}

/// A generator that depends on both numbers.
fn rng(seed: u64, i: u64) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&i.to_le_bytes());
    StdRng::from_seed(bytes)
}

fn id(rng: &mut StdRng) -> String {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid().to_string()
}

fn name(rng: &mut StdRng) -> (String, &'static str) {
    let (first, gender) =
        if rng.random_bool(0.51) { (pick(&WOMEN, rng), "female") } else { (pick(&MEN, rng), "male") };
    (format!("{first} {}", pick(&SURNAMES, rng)), gender)
}

fn pick<'a, T>(from: &'a [T], rng: &mut StdRng) -> &'a T {
    from.choose(rng).expect("invariant: the lists are not empty")
}

/// The birthday of someone who was `age` years and `days` days old on the day the register closed.
fn date_of_birth(age: u32, days: u64) -> String {
    let closed = NaiveDate::from_ymd_opt(2026, 4, 20).unwrap_or_default();
    let born = closed
        .checked_sub_months(Months::new(age * 12))
        .and_then(|day| day.checked_sub_days(Days::new(days)));
    born.unwrap_or(closed).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn people_depend_on_seed_and_number_alone_and_are_adults_with_ids_of_their_own() {
        let json = |seed, i| serde_json::to_string(&voter(seed, i)).unwrap();
        assert_eq!(json(7, 41), json(7, 41));
        assert_ne!(json(7, 41), json(8, 41));
        let people: Vec<_> = (0..5_000).map(|i| voter(7, i)).collect();
        assert_eq!(people.iter().map(|p| &p.voter_id).collect::<HashSet<_>>().len(), people.len());
        let closed = NaiveDate::from_ymd_opt(2026, 4, 20).unwrap();
        for person in &people {
            let born: NaiveDate = person.date_of_birth.parse().unwrap();
            assert_eq!(closed.years_since(born), Some(person.registered_age), "{person:?}");
            assert!(person.registered_age >= AGE_MIN);
        }
        assert_eq!(people.iter().map(|p| p.address.state).collect::<HashSet<_>>().len(), PLACES.len());
    }

    #[test]
    fn every_candidate_has_a_party_of_their_own() {
        let parties: HashSet<_> = (0..100).map(|i| candidate(1, i).party_affiliation).collect();
        assert_eq!(parties.len(), 100);
        assert_eq!(candidate(1, 1).party_affiliation, "Savior Party");
    }

    #[test]
    fn a_picture_tells_the_gender_of_the_name() {
        for i in 0..50 {
            let candidate = candidate(1, i);
            let first = candidate.candidate_name.split(' ').next().unwrap();
            let gender = if WOMEN.contains(&first) { "female" } else { "male" };
            let prefix = format!("/portraits/candidate/{gender}-");
            assert!(candidate.photo_url.starts_with(&prefix), "{candidate:?}");
        }
    }
}
