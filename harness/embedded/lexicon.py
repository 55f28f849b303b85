"""The words and sentence patterns of the embedded stories.

Everything here is data.  The rules that keep a story's probability exact are few, and the tests
hold them: within one list no entry occurs twice, no choice of patterns and words can spell out the
sentence of another choice, and a slot takes its words from the list of the same name.  Changing a
single word changes the stories, and with them the golden hashes and the trained model.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Anna Bella Clara Dora Emma Fiona Grace Hanna Iris Julia Kate Lucy Mary Nora Olga Rosa"
)
BOYS = _words("Adam Ben Carl David Eric Frank George Henry Ivan Jack Leo Mark Noah Oscar Paul Tom")
NAMES = (*GIRLS, *BOYS)

OBJECTS = _words(
    "key ring coin letter candle book hat apple knife rope spoon cup doll drum lamp map "
    "scarf shoe button clock mirror flute feather stone ball bell brush glove kite pen pie "
    "whistle"
)

# Adverbs of place, which follow their object at once: "the key upstairs". That is the simplest
# thing that has to be looked up in the story, so a small model can learn it well.
PLACES = _words(
    "upstairs downstairs outside inside outdoors indoors underground overhead ashore aboard abroad "
    "nearby backstage underwater uphill downhill inland offshore overseas below uptown downtown "
    "midway northward southward eastward westward seaward"
)

# Lists that slots such as {adj} or {adj2} draw from.  Those that follow "a" start with a consonant.
WORDS: dict[str, tuple[str, ...]] = {
    "adj": _words(
        "small big dark bright quiet strange lovely narrow wide dusty warm cold pretty plain "
        "tall little heavy soft rough clean dirty pale golden wooden lonely famous huge tiny "
        "broken clever gentle proud"
    ),
    "feeling": _words(
        "happy sad tired angry hungry nervous proud calm bored curious lonely afraid cheerful "
        "thirsty sleepy worried grateful jealous surprised excited"
    ),
    "part": ("morning", "afternoon", "evening", "night", "day"),
    "season": ("spring", "summer", "autumn", "winter"),
    "venue": _words(
        "house farm castle village school mill cottage palace inn museum hotel station"
    ),
    "water": _words("river lake sea pond stream harbour waterfall bay"),
    "animal": _words(
        "dog cat horse goat sheep fox rabbit duck hen cow owl bear wolf mouse pig goose"
    ),
    "animalverb": _words(
        "slept barked waited howled cried rested played ran hid shivered sang ate jumped watched"
    ),
    "weather": _words("rain snow wind storm fog thunder hail mist"),
    "weatherverb": _words("stopped began returned grew faded lasted passed arrived"),
    "land": _words("hill forest valley field road bridge mountain meadow beach desert island town"),
    "went": _words("walked ran hurried rode strolled marched wandered raced climbed sailed"),
    "how": _words(
        "slowly quickly quietly happily sadly gladly carefully bravely gently proudly loudly "
        "calmly secretly eagerly"
    ),
    "food": _words(
        "bread soup cheese honey cake rice fish butter porridge jam stew milk tea salad pudding"
    ),
    "job": _words(
        "baker farmer teacher doctor sailor miller tailor painter singer soldier hunter carpenter"
    ),
    "relative": _words(
        "mother father sister brother uncle aunt grandmother grandfather cousin neighbour"
    ),
    "doing": _words(
        "reading singing dancing cooking sewing painting fishing drawing digging writing laughing "
        "dreaming sweeping counting"
    ),
    "todo": _words("dance sing sleep swim travel paint cook study dream work rest play read write"),
    "number": _words("two three four five six seven eight nine ten twelve"),
    "colour": _words("red blue green yellow white black brown grey purple pink"),
    "plant": _words("rose oak tulip pine lily daisy willow birch bush vine"),
    "time": ("Later", "Soon", "Then", "Next", "Afterwards", "Meanwhile", "At noon", "At dusk"),
    "said": _words("said whispered shouted replied muttered answered laughed sighed"),
    "topic": _words("war money music love history food magic weather school football gold death"),
    "quality": _words("older younger taller kinder faster wiser stronger smarter"),
}

# Slots {p}, {q}, {r} draw from the cast without repetition inside a sentence; {he}, {his}, {him}
# follow {p}.
OPENINGS = (
    "One {adj} {season} {part}, {cast} met in a {adj2} {venue} by the {water}.",
    "It was a {adj} {part} in {season}, and {cast} were alone in the {venue}.",
    "Long ago, {cast} lived in a {adj} {venue} near the {water}.",
    "{cast} had come to the {adj} {venue} to meet a {adj2} {job}.",
    "In {season}, {cast} worked for a {adj} {job} in a {adj2} {venue}.",
)

# Somebody ({p}) puts an object ({o}) in a place ({l}).
PUTS = (
    "{p} put the {o} {l}.",
    "{p} hid the {o} {l}.",
    "{p} left the {o} {l} and {went} to the {land}.",
    "{how}, {p} placed the {o} {l}.",
    "{p}, who was {feeling}, dropped the {o} {l}.",
    "Because {p} was {feeling}, {he} kept the {o} {l}.",
    "While the {animal} {animalverb}, {p} laid the {o} {l}.",
)

# {p} moves {o} to another place {l}.
MOVES = (
    "{time}, {p} moved the {o} {l}.",
    "{p} {how} carried the {o} {l}.",
    "When the {weather} {weatherverb}, {p} brought the {o} {l}.",
)

# The object {o} is mentioned with its place {l}.
MENTIONS = (
    '"Where is it?" asked {p}. "You mean the {o} {l}," {said} {q}.',
    "{p} looked for the {o} {l} and found it.",
    "{p} remembered the {o} {l}.",
    "{p} asked {q} about the {o} {l}.",
    "If {p} needed something, {he} thought of the {o} {l}.",
    "{p} {how} showed {q} the {o} {l}.",
    '"Did you see the {o} {l}?" asked {p}.',
)

FILLERS = (
    "The {weather} {weatherverb}, and the {land} looked {adj}.",
    "{p} was {feeling} because the {animal} {animalverb} all {part}.",
    "{p} and {q} talked about {topic} and {topic2}.",
    '"I am so {feeling}," {said} {p}.',
    '"Do you like {food}?" {p} asked {q}. "No, I like {food2}."',
    "{p} had never seen such a {adj} {animal} before.",
    "After {he} had eaten the {food}, {p} wanted to {todo}.",
    "The {animal} near the {water} was {colour} and {adj}.",
    "{p} would rather {todo} than {todo2}.",
    "There were {number} {colour} birds above the {land}.",
    "{p}, whose {relative} was a {job}, loved {doing}.",
    "{p} {went} {how} across the {land}.",
    "Every {part}, {p} dreamed of a {adj} {land}.",
    "The {job} who lived beyond the {water} gave {p} some {food}.",
    "{p} was {quality} than {q}, but not as {feeling}.",
    "A {adj} {plant} had been growing behind the {venue} for {number} years.",
    "{p} and {q} kept {doing} until the {weather} {weatherverb}.",
    '"Let us {todo} tomorrow," {said} {p} {how}.',
    "Neither {p} nor {q} heard the {animal} that {animalverb} at night.",
    "If the {weather} came back, {p} would have to {todo}.",
    "{p} has a {adj} {relative} who sells {food} in the {venue}.",
    "Nobody knew why the {adj} {animal} {animalverb}.",
    "It is said that the {land} belongs to a {adj} {job}.",
    "{p} felt {feeling} and {feeling2}, so {he} began {doing}.",
    "The {food} which {p} had made for {q} tasted {adj}.",
    "{number} {job}s stood by the {water} and waited for the {weather} to end.",
    "{p} gave {q} a {colour} {plant} and some {food}.",
    "How {adj} the {land} was in {season}!",
    "Having finished {his} {food}, {p} {went} to the {water}.",
    "Once, {p} had met a {adj} {job} with {number} {colour} horses.",
    "{p} told {q} a {adj} story about the {animal} and the {animal2}.",
    "Both {p} and {q} were too {feeling} to {todo}.",
)

# The closing sentences: the slot at the end is the story's last word.
CLOSINGS = (
    "In the end, {p} went to get the {o} {l}",
    "At last, everybody asked {p} about the {o} {l}",
    "Before they went home, {p} and {q} found the {o} {l}",
)
