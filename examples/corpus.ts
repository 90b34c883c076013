/**
 * A seeded generator of little stories, for a teacher small enough to live in this repository. They are made to be learnt
 * from: who has what, where it lies and what colour it is stays true to the end of a story, so a model must look back.
 *
 *     npx tsx examples/corpus.ts 42 20000 > stories.txt
 */
import { Random } from "../src/system/random.js";

const PEOPLE = ["Mira", "Tobin", "Anouk", "Jasper", "Leni", "Oskar", "Priya", "Samir", "Wren", "Hugo", "Ines", "Kofi"];
const ANIMALS = ["fox", "heron", "badger", "otter", "hare", "goat", "crow", "toad", "mole", "pony"];
const THINGS = [
  "lantern",
  "kite",
  "basket",
  "drum",
  "ladder",
  "whistle",
  "blanket",
  "compass",
  "teapot",
  "rope",
  "map",
  "key",
];
const COLOURS = ["red", "blue", "green", "yellow", "white", "black", "silver", "brown"];
const PLACES = ["mill", "orchard", "harbour", "bridge", "barn", "market", "well", "hill", "forest", "tower"];
const FEELINGS = ["glad", "tired", "proud", "worried", "curious", "hungry", "calm", "lonely"];
const WEATHER = ["rain", "snow", "wind", "fog", "sunshine", "thunder"];
const FOODS = ["bread", "plums", "soup", "cheese", "honey", "nuts", "apples", "cake"];
const NUMBERS = ["two", "three", "four", "five", "six", "seven"];
const TIMES = ["One morning", "One evening", "Late in spring", "On a cold day", "At noon", "Before dawn"];

type Pick = <T>(choices: readonly T[]) => T;

/** Two different choices. */
function pair<T>(pick: Pick, choices: readonly T[]): [T, T] {
  const first = pick(choices);
  let second = pick(choices);
  while (second === first) second = pick(choices);
  return [first, second];
}

const article = (word: string): string => (/^[aeiou]/.test(word) ? `an ${word}` : `a ${word}`);

const PLOTS: readonly ((pick: Pick) => string[])[] = [
  function lostThing(pick) {
    const [owner, friend] = pair(pick, PEOPLE);
    const thing = `${pick(COLOURS)} ${pick(THINGS)}`;
    const [start, end] = pair(pick, PLACES);
    const mood = pick(FEELINGS);
    return [
      `${pick(TIMES)}, ${owner} went to the ${start} with a ${thing}.`,
      `There was ${pick(WEATHER)}, and ${owner} ran all the way to the ${end}.`,
      `At the ${end}, the ${thing} was gone. ${owner} felt ${mood}.`,
      `"Have you seen my ${thing}?" asked ${owner}.`,
      `"Yes," said ${friend}. "It is still at the ${start}."`,
      `So ${owner} and ${friend} walked back to the ${start}, and there was the ${thing}.`,
      `"Thank you, ${friend}," said ${owner}, who was not ${mood} any more.`,
    ];
  },
  function sharing(pick) {
    const [giver, taker] = pair(pick, PEOPLE);
    const animal = pick(ANIMALS);
    const food = pick(FOODS);
    const place = pick(PLACES);
    return [
      `${giver} lived near the ${place} with ${article(animal)}.`,
      `${pick(TIMES)}, ${taker} came by and was hungry.`,
      `${giver} had ${food}. The ${animal} wanted the ${food} too.`,
      `"There is enough for all of us," said ${giver}, and cut the ${food} into ${pick(NUMBERS)} parts.`,
      `${taker} ate some ${food}, the ${animal} ate some ${food}, and ${giver} ate the rest.`,
      `Then ${taker} told the ${animal} a story about the ${place} until it was dark.`,
    ];
  },
  function trade(pick) {
    const [one, other] = pair(pick, PEOPLE);
    const [first, second] = pair(pick, THINGS);
    const [firstColour, secondColour] = pair(pick, COLOURS);
    const place = pick(PLACES);
    return [
      `At the ${place}, ${one} had a ${firstColour} ${first} and ${other} had a ${secondColour} ${second}.`,
      `${one} liked the ${second}. ${other} liked the ${first}.`,
      `"Shall we trade?" asked ${pick([one, other])}.`,
      `So they did. Now ${one} had the ${secondColour} ${second}, and ${other} had the ${firstColour} ${first}.`,
      `On the way home from the ${place}, ${one} showed the ${second} to everyone.`,
      `${other} put the ${firstColour} ${first} by the door and was ${pick(["glad", "proud", "calm"])}.`,
    ];
  },
  function search(pick) {
    const seeker = pick(PEOPLE);
    const [animal, helper] = pair(pick, ANIMALS);
    const [near, far] = pair(pick, PLACES);
    const count = pick(NUMBERS);
    return [
      `${seeker} had ${count} little ${animal === "pony" ? "ponies" : animal === "fox" ? "foxes" : `${animal}s`}, but one was missing.`,
      `${seeker} looked at the ${near}. It was not there.`,
      `Then ${article(helper)} came out of the ${near}. "Go to the ${far}," said the ${helper}.`,
      `${seeker} went to the ${far} in the ${pick(WEATHER)}, and the little ${animal} was sitting there.`,
      `"You found me," said the ${animal}. "I was ${pick(FEELINGS)}."`,
      `${seeker} thanked the ${helper} and counted again: ${count}, all at home.`,
    ];
  },
];

/** An endless series of stories. Same seed, same stories. */
export function* stories(seed: number): Generator<string> {
  const random = new Random(seed, 77);
  const pick: Pick = (choices) => choices[random.integer(choices.length)] as (typeof choices)[number];
  for (;;) yield pick(PLOTS)(pick).join(pick([" ", "\n"]));
}

/** A corpus of so many stories, as text with separators. */
export function corpus(seed: number, count: number): string {
  const all: string[] = [];
  for (const story of stories(seed)) if (all.push(story) >= count) break;
  return `${all.join("\n<|endoftext|>\n")}\n`;
}

if (process.argv[1]?.endsWith("corpus.ts")) {
  const [seed = "42", count = "20000"] = process.argv.slice(2);
  process.stdout.write(corpus(Number(seed), Number(count)));
}
