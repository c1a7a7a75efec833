//! The places that declare a result: counties of the United Kingdom with their towns, where each stands on a
//! tile map, and how each leans.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A county.
#[derive(Debug)]
pub struct Place {
    /// Its name, as in a voter's address.
    pub name: &'static str,
    /// The same in at most four letters, for its tile.
    pub code: &'static str,
    /// Nation, or region of England.
    pub region: &'static str,
    /// Column and row on the tile map.
    pub tile: (i32, i32),
    /// Town, postcode area, and how many voters live there relative to others.
    pub towns: &'static [(&'static str, &'static str, u32)],
}

const fn place(
    name: &'static str,
    code: &'static str,
    region: &'static str,
    tile: (i32, i32),
    towns: &'static [(&'static str, &'static str, u32)],
) -> Place {
    Place { name, code, region, tile, towns }
}

const SCOTLAND: &str = "Scotland";
const ULSTER: &str = "Northern Ireland";
const WALES: &str = "Wales";
const NORTH_EAST: &str = "North East";
const NORTH_WEST: &str = "North West";
const YORKSHIRE: &str = "Yorkshire and the Humber";
const EAST_MIDLANDS: &str = "East Midlands";
const WEST_MIDLANDS: &str = "West Midlands";
const EAST: &str = "East of England";
const LONDON: &str = "London";
const SOUTH_EAST: &str = "South East";
const SOUTH_WEST: &str = "South West";

/// All places, from north to south. Small counties have more voters than they should: none is so small that
/// its result would tell who voted how.
pub const PLACES: [Place; 68] = [
    place("Highland", "High", SCOTLAND, (3, 0), &[("Inverness", "IV", 9), ("Fort William", "PH", 5)]),
    place("Aberdeenshire", "Abdn", SCOTLAND, (4, 0), &[("Aberdeen", "AB", 20), ("Peterhead", "AB", 6)]),
    place("Perthshire", "Prth", SCOTLAND, (3, 1), &[("Perth", "PH", 12)]),
    place("Angus", "Angs", SCOTLAND, (4, 1), &[("Dundee", "DD", 16)]),
    place("Stirlingshire", "Stir", SCOTLAND, (2, 2), &[("Stirling", "FK", 8), ("Falkirk", "FK", 8)]),
    place("Fife", "Fife", SCOTLAND, (3, 2), &[("Dunfermline", "KY", 12), ("Kirkcaldy", "KY", 8)]),
    place("Ayrshire", "Ayr", SCOTLAND, (2, 3), &[("Ayr", "KA", 10), ("Kilmarnock", "KA", 9)]),
    place("Lanarkshire", "Lnrk", SCOTLAND, (3, 3), &[("Glasgow", "G", 52), ("Motherwell", "ML", 10)]),
    place("Midlothian", "Mlth", SCOTLAND, (4, 3), &[("Edinburgh", "EH", 42)]),
    place("Dumfriesshire", "Dmfr", SCOTLAND, (3, 4), &[("Dumfries", "DG", 11)]),
    place("Scottish Borders", "Bord", SCOTLAND, (4, 4), &[("Galashiels", "TD", 11)]),
    place("County Londonderry", "Ldry", ULSTER, (0, 4), &[("Derry", "BT", 10), ("Coleraine", "BT", 4)]),
    place("County Antrim", "Antr", ULSTER, (1, 4), &[("Belfast", "BT", 26), ("Ballymena", "BT", 4)]),
    place("County Tyrone", "Tyr", ULSTER, (0, 5), &[("Omagh", "BT", 12)]),
    place("County Down", "Down", ULSTER, (1, 5), &[("Bangor", "BT", 10), ("Newry", "BT", 7)]),
    place("Northumberland", "Nbld", NORTH_EAST, (5, 4), &[("Morpeth", "NE", 8), ("Blyth", "NE", 8)]),
    place("Cumbria", "Cmbr", NORTH_WEST, (3, 5), &[("Carlisle", "CA", 11), ("Kendal", "LA", 7)]),
    place("County Durham", "Dur", NORTH_EAST, (4, 5), &[("Durham", "DH", 12), ("Darlington", "DL", 12)]),
    place(
        "Tyne and Wear",
        "Tyne",
        NORTH_EAST,
        (5, 5),
        &[("Newcastle upon Tyne", "NE", 26), ("Sunderland", "SR", 20)],
    ),
    place(
        "Lancashire",
        "Lncs",
        NORTH_WEST,
        (3, 6),
        &[("Preston", "PR", 18), ("Blackpool", "FY", 12), ("Lancaster", "LA", 10)],
    ),
    place("North Yorkshire", "NYks", YORKSHIRE, (4, 6), &[("York", "YO", 18), ("Harrogate", "HG", 12)]),
    place("East Riding", "ERid", YORKSHIRE, (5, 6), &[("Hull", "HU", 22), ("Beverley", "HU", 5)]),
    place("Merseyside", "Mers", NORTH_WEST, (2, 7), &[("Liverpool", "L", 38), ("Southport", "PR", 10)]),
    place(
        "Greater Manchester",
        "Manc",
        NORTH_WEST,
        (3, 7),
        &[("Manchester", "M", 40), ("Bolton", "BL", 16), ("Stockport", "SK", 16), ("Wigan", "WN", 16)],
    ),
    place(
        "West Yorkshire",
        "WYks",
        YORKSHIRE,
        (4, 7),
        &[("Leeds", "LS", 36), ("Bradford", "BD", 24), ("Huddersfield", "HD", 9)],
    ),
    place("South Yorkshire", "SYks", YORKSHIRE, (5, 7), &[("Sheffield", "S", 28), ("Doncaster", "DN", 16)]),
    place("Gwynedd", "Gwyn", WALES, (1, 8), &[("Caernarfon", "LL", 11)]),
    place("Clwyd", "Clwd", WALES, (2, 8), &[("Wrexham", "LL", 11), ("Rhyl", "LL", 7)]),
    place("Cheshire", "Chsh", NORTH_WEST, (3, 8), &[("Chester", "CH", 12), ("Warrington", "WA", 18)]),
    place("Derbyshire", "Derb", EAST_MIDLANDS, (4, 8), &[("Derby", "DE", 20), ("Chesterfield", "S", 11)]),
    place(
        "Nottinghamshire",
        "Nott",
        EAST_MIDLANDS,
        (5, 8),
        &[("Nottingham", "NG", 24), ("Mansfield", "NG", 10)],
    ),
    place("Lincolnshire", "Linc", EAST_MIDLANDS, (6, 8), &[("Lincoln", "LN", 15), ("Grimsby", "DN", 12)]),
    place("Powys", "Pwys", WALES, (2, 9), &[("Newtown", "SY", 11)]),
    place("Shropshire", "Shrp", WEST_MIDLANDS, (3, 9), &[("Shrewsbury", "SY", 9), ("Telford", "TF", 11)]),
    place(
        "Staffordshire",
        "Staf",
        WEST_MIDLANDS,
        (4, 9),
        &[("Stoke-on-Trent", "ST", 20), ("Stafford", "ST", 12)],
    ),
    place("Leicestershire", "Leic", EAST_MIDLANDS, (5, 9), &[("Leicester", "LE", 28)]),
    place("Rutland", "Rut", EAST_MIDLANDS, (6, 9), &[("Oakham", "LE", 9)]),
    place("Cambridgeshire", "Camb", EAST, (7, 9), &[("Cambridge", "CB", 13), ("Peterborough", "PE", 15)]),
    place("Norfolk", "Norf", EAST, (8, 9), &[("Norwich", "NR", 18), ("King's Lynn", "PE", 8)]),
    place("Dyfed", "Dyfd", WALES, (1, 10), &[("Carmarthen", "SA", 9), ("Aberystwyth", "SY", 5)]),
    place("Gwent", "Gwnt", WALES, (2, 10), &[("Newport", "NP", 17)]),
    place(
        "Hereford and Worcester",
        "H&W",
        WEST_MIDLANDS,
        (3, 10),
        &[("Worcester", "WR", 14), ("Hereford", "HR", 10)],
    ),
    place(
        "West Midlands",
        "WMid",
        WEST_MIDLANDS,
        (4, 10),
        &[("Birmingham", "B", 52), ("Coventry", "CV", 20), ("Wolverhampton", "WV", 16)],
    ),
    place("Warwickshire", "Warw", WEST_MIDLANDS, (5, 10), &[("Warwick", "CV", 10), ("Rugby", "CV", 9)]),
    place("Northamptonshire", "Nthn", EAST_MIDLANDS, (6, 10), &[("Northampton", "NN", 20)]),
    place("Bedfordshire", "Beds", EAST, (7, 10), &[("Luton", "LU", 14), ("Bedford", "MK", 9)]),
    place("Suffolk", "Suff", EAST, (8, 10), &[("Ipswich", "IP", 15), ("Lowestoft", "NR", 8)]),
    place("West Glamorgan", "WGlm", WALES, (1, 11), &[("Swansea", "SA", 18)]),
    place("South Glamorgan", "SGlm", WALES, (2, 11), &[("Cardiff", "CF", 25)]),
    place(
        "Gloucestershire",
        "Glos",
        SOUTH_WEST,
        (3, 11),
        &[("Gloucester", "GL", 14), ("Cheltenham", "GL", 10)],
    ),
    place("Oxfordshire", "Oxon", SOUTH_EAST, (4, 11), &[("Oxford", "OX", 15), ("Banbury", "OX", 7)]),
    place(
        "Buckinghamshire",
        "Buck",
        SOUTH_EAST,
        (5, 11),
        &[("Milton Keynes", "MK", 16), ("Aylesbury", "HP", 8)],
    ),
    place("Hertfordshire", "Hert", EAST, (6, 11), &[("Watford", "WD", 15), ("St Albans", "AL", 15)]),
    place(
        "Essex",
        "Essx",
        EAST,
        (7, 11),
        &[("Colchester", "CO", 16), ("Southend-on-Sea", "SS", 16), ("Chelmsford", "CM", 14)],
    ),
    place("Bristol", "Bris", SOUTH_WEST, (3, 12), &[("Bristol", "BS", 27)]),
    place("Wiltshire", "Wilt", SOUTH_WEST, (4, 12), &[("Swindon", "SN", 13), ("Salisbury", "SP", 7)]),
    place("Berkshire", "Berk", SOUTH_EAST, (5, 12), &[("Reading", "RG", 18), ("Slough", "SL", 10)]),
    place(
        "Greater London",
        "Lon",
        LONDON,
        (6, 12),
        &[("London", "SE", 112), ("Croydon", "CR", 24), ("Bromley", "BR", 20), ("Harrow", "HA", 16)],
    ),
    place(
        "Kent",
        "Kent",
        SOUTH_EAST,
        (7, 12),
        &[("Maidstone", "ME", 20), ("Canterbury", "CT", 14), ("Dartford", "DA", 12)],
    ),
    place(
        "Devon",
        "Devn",
        SOUTH_WEST,
        (1, 13),
        &[("Plymouth", "PL", 19), ("Exeter", "EX", 12), ("Torquay", "TQ", 6)],
    ),
    place("Somerset", "Som", SOUTH_WEST, (2, 13), &[("Bath", "BA", 12), ("Taunton", "TA", 11)]),
    place("Dorset", "Dors", SOUTH_WEST, (3, 13), &[("Bournemouth", "BH", 18), ("Dorchester", "DT", 5)]),
    place(
        "Hampshire",
        "Hamp",
        SOUTH_EAST,
        (4, 13),
        &[("Southampton", "SO", 19), ("Portsmouth", "PO", 17), ("Basingstoke", "RG", 10)],
    ),
    place(
        "Surrey",
        "Surr",
        SOUTH_EAST,
        (5, 13),
        &[("Guildford", "GU", 13), ("Woking", "GU", 10), ("Reigate", "RH", 12)],
    ),
    place("West Sussex", "WSsx", SOUTH_EAST, (6, 13), &[("Crawley", "RH", 12), ("Worthing", "BN", 11)]),
    place("East Sussex", "ESsx", SOUTH_EAST, (7, 13), &[("Brighton", "BN", 19), ("Hastings", "TN", 8)]),
    place("Cornwall", "Corn", SOUTH_WEST, (0, 14), &[("Truro", "TR", 9), ("Falmouth", "TR", 8)]),
    place("Isle of Wight", "IoW", SOUTH_EAST, (4, 14), &[("Ryde", "PO", 10)]),
];

/// How large a candidate's share of the nation is, relative to others, by position. The first two are close.
const STANDING: [f64; 5] = [1.0, 0.985, 0.74, 0.5, 0.36];
/// The same at the election before, in which the third led.
const STANDING_BEFORE: [f64; 5] = [0.8, 0.86, 1.0, 0.46, 0.3];
/// The share of all voters who voted then, about.
const TURNOUT_BEFORE: f64 = 0.67;
/// How much places differ: of a region's lean, and of a place's own.
const REGION_SPREAD: f64 = 0.55;
const PLACE_SPREAD: f64 = 0.4;
/// Rounds after which the nation stands as it should to a thousandth.
const FITTING_ROUNDS: usize = 30;

/// By place, each candidate's share of its votes.
#[derive(Clone, Debug)]
pub struct Leanings {
    by_place: HashMap<&'static str, Vec<f64>>,
    elsewhere: Vec<f64>,
}

impl Leanings {
    /// Those of this election, for `candidates` candidates.
    pub fn new(seed: u64, candidates: usize) -> Leanings {
        Leanings::standing(seed, candidates, &STANDING, 0.0)
    }

    /// Those of the election before: the same places with the same leans, but for some that have moved.
    pub fn before(seed: u64, candidates: usize) -> Leanings {
        Leanings::standing(seed, candidates, &STANDING_BEFORE, 0.25)
    }

    fn standing(seed: u64, candidates: usize, standing: &[f64; 5], moved: f64) -> Leanings {
        let national: Vec<f64> = (0..candidates)
            .map(|i| standing.get(i).copied().unwrap_or(standing[4] * 5.0 / (i as f64 + 1.0)))
            .collect();
        let total: f64 = national.iter().sum();
        let national: Vec<f64> = national.iter().map(|share| share / total).collect();
        let lean = |name: &str, i: usize, spread: f64| (spread * spread_of(seed, name, i)).exp();
        let mut shares: Vec<Vec<f64>> = PLACES
            .iter()
            .map(|place| {
                let share = |i: usize| {
                    let before = format!("{} before", place.name);
                    national[i]
                        * lean(place.region, i, REGION_SPREAD)
                        * lean(place.name, i, PLACE_SPREAD)
                        * lean(&before, i, moved)
                };
                (0..candidates).map(share).collect()
            })
            .collect();
        // However the places lean, the nation as a whole stands as it should.
        for _ in 0..FITTING_ROUNDS {
            let mut sums = vec![0.0; candidates];
            for (place, shares) in PLACES.iter().zip(&mut shares) {
                let total: f64 = shares.iter().sum();
                shares.iter_mut().for_each(|share| *share /= total);
                let voters = f64::from(place.voters());
                sums.iter_mut().zip(&*shares).for_each(|(sum, share)| *sum += share * voters);
            }
            let voters: f64 = sums.iter().sum();
            for shares in &mut shares {
                for i in 0..candidates {
                    shares[i] *= national[i] * voters / sums[i];
                }
            }
        }
        Leanings {
            by_place: PLACES.iter().map(|place| place.name).zip(shares).collect(),
            elsewhere: national,
        }
    }

    /// Relative shares of the candidates in a place; those of the nation where it is not known.
    pub fn of(&self, place: &str) -> &[f64] {
        self.by_place.get(place).unwrap_or(&self.elsewhere)
    }
}

impl Place {
    /// Its voters, relative to other places.
    pub fn voters(&self) -> u32 {
        self.towns.iter().map(|town| town.2).sum()
    }

    /// The share of them who voted at the election before.
    pub fn turnout_before(&self, seed: u64) -> f64 {
        (TURNOUT_BEFORE + 0.04 * spread_of(seed, &format!("{} turnout", self.name), 0)).clamp(0.4, 0.9)
    }
}

/// About normal around 0, of a name and a candidate: four dice of −1 to 1, scaled.
fn spread_of(seed: u64, name: &str, candidate: usize) -> f64 {
    let mut rng = StdRng::seed_from_u64(super::hash(name) ^ seed.rotate_left(17) ^ candidate as u64);
    (0..4).map(|_| rng.random::<f64>() * 2.0 - 1.0).sum::<f64>() * 0.866
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_place_has_a_name_and_a_tile_of_its_own() {
        assert_eq!(PLACES.iter().map(|place| place.name).collect::<HashSet<_>>().len(), PLACES.len());
        assert_eq!(PLACES.iter().map(|place| place.code).collect::<HashSet<_>>().len(), PLACES.len());
        assert_eq!(PLACES.iter().map(|place| place.tile).collect::<HashSet<_>>().len(), PLACES.len());
        assert!(
            PLACES.iter().all(|place| place.voters() >= 9),
            "no place is too small to keep a ballot secret"
        );
    }

    #[test]
    fn places_differ_and_the_nation_is_close() {
        let leanings = Leanings::new(1, 5);
        let mut sums = [0.0; 5];
        let mut leaders = HashSet::new();
        for place in &PLACES {
            let shares = leanings.of(place.name);
            let total: f64 = shares.iter().sum();
            let first = (0..5).max_by(|a, b| shares[*a].total_cmp(&shares[*b])).unwrap();
            leaders.insert(first);
            for i in 0..5 {
                sums[i] += shares[i] / total * f64::from(place.voters());
            }
        }
        assert!(leaders.len() >= 3, "only {leaders:?} lead anywhere");
        let total: f64 = sums.iter().sum();
        let points = |i: usize| 100.0 * sums[i] / total;
        assert!(points(0) > points(1) && points(0) - points(1) < 1.0, "{} to {}", points(0), points(1));
        assert!(points(1) - points(2) > 5.0);
        assert_eq!(leanings.of("Atlantis").len(), 5);
        assert_ne!(Leanings::before(1, 5).of("Kent"), leanings.of("Kent"));
        let turnouts: HashSet<_> = PLACES.iter().map(|place| place.turnout_before(1).to_bits()).collect();
        assert_eq!(turnouts.len(), PLACES.len());
    }
}
