"""Rebuild the packaged contrast pairs bit for bit, or check them with --check.

The two files are proxsae/data/contrasts.tsv (the sentences) and
minilm-l6-v2-layer3-contrasts.npy (their states: float16, shape (pairs, 2, 384), positive first).
A state is that of the marked word, at its last subword token, after encoder layer 3 of 6 of
all-MiniLM-L6-v2: the layer of the packaged activations.  proxsae/data/PROVENANCE.md describes them.

The sentences were written for this project, as the word lists and frames below.  Install
requirements.txt as the head of build_activations.py says, then

    python build_contrasts.py            # writes both files, in a few minutes
    python build_contrasts.py --check    # compares only; exit status 1 on a difference

A concept has groups: frames, and the words that make sense in every one of these frames.  A word is
"positive/negative", or one word for both sides where the frame holds the contrast, as in
"The box was {not/still} [*] in the morning."  [*] is the marked word.  Either way the sentences of a
pair differ in exactly one word.  A third of the words of each group is held out, by a fixed seed,
so every frame is on both sides and no marked word is.
"""

import io

import numpy as np
import torch
from build_activations import LAYER, load, write_or_check
from tqdm import tqdm

TEXT = "contrasts.tsv"
STATES = "minilm-l6-v2-layer3-contrasts.npy"
SEED = 0

TWO_SIDED = {
    "gender": [  # feminine or masculine
        ("""The [*] opened the gate.
            We met the [*] at the station.
            The [*] waited by the window for an hour.
            Everyone in the village knew the [*].
            A letter came for the [*] this morning.""",
         """queen/king woman/man girl/boy princess/prince duchess/duke lady/gentleman actress/actor waitress/waiter
            hostess/host nun/monk witch/wizard bride/groom widow/widower empress/emperor countess/count
            baroness/baron heiress/heir"""),
        ("""My [*] lives near the harbour.
            She had breakfast with her [*].
            His [*] found the old letters.
            They asked the teacher's [*] for advice.
            Your [*] came home by the early train.""",
         """mother/father sister/brother daughter/son aunt/uncle niece/nephew wife/husband grandmother/grandfather
            granddaughter/grandson girlfriend/boyfriend mum/dad"""),
        ("""[*] opened the shop at nine.
            We wrote to [*] about the garden.
            The teacher thanked [*] for the flowers.
            [*] and the children walked to the lake.
            Nobody had seen [*] since the wedding.""",
         """Mary/John Emma/James Anna/Peter Sarah/David Alice/Thomas Helen/George Julia/Robert Laura/William
            Jane/Paul Elizabeth/Charles"""),
        ("""The farmer sold the [*] at the market.
            The [*] slept in the barn.
            We could hear the [*] behind the fence.
            The [*] ate from the bucket.
            A photograph of the [*] hung in the kitchen.""",
         "hen/rooster cow/bull mare/stallion"),
    ],
    "number": [  # plural or singular
        ("""She wrote a story about the [*].
            He took a picture of the [*].
            Nobody noticed the [*] in the corner.
            The [*] disappeared last week.
            They talked about the [*] for a while.""",
         """books/book chairs/chair lamps/lamp bottles/bottle boxes/box cups/cup clocks/clock baskets/basket
            candles/candle tables/table bags/bag bicycles/bicycle coins/coin mirrors/mirror keys/key"""),
        ("""The [*] slept near the fire.
            We followed the [*] across the field.
            She gave the [*] some water.
            The [*] ran into the garden.
            A noise woke the [*] at night.""",
         """dogs/dog cats/cat horses/horse birds/bird mice/mouse geese/goose children/child men/man women/woman
            teachers/teacher farmers/farmer doctors/doctor students/student soldiers/soldier neighbours/neighbour"""),
        ("""From the train we saw the [*].
            The fog hid the [*] from view.
            The map shows the [*] in green.
            He drew the [*] from memory.
            The children ran towards the [*].""",
         """houses/house towers/tower bridges/bridge churches/church rivers/river hills/hill islands/island
            gardens/garden castles/castle trees/tree"""),
    ],
    "tense": [  # past or future
        ("""The girls {did/will} not [*] along the coast.
            {Did/Will} your brother [*] to the island?
            Why {did/will} they [*] so far?
            The soldiers {did/will} not [*] at night.
            Where {did/will} the children [*] with their uncle?""",
         "walk run swim travel ride drive sail fly climb march hike paddle"),
        ("""{Did/Will} the old man [*] in the evening?
            We {did/will} not [*] for long.
            Why {did/will} the guests not [*] there?
            How long {did/will} the women [*] together?
            My neighbour {did/will} not [*] after dinner.""",
         "work speak sing wait sleep dance talk play cook smoke rest study pray laugh"),
        ("""The family {did/will} not [*] the house.
            {Did/Will} the council [*] the church?
            When {did/will} they [*] the old station?
            Why {did/will} nobody [*] the bridge?
            Our company {did/will} not [*] the hotel.""",
         "buy sell paint open close clean repair visit rebuild inspect photograph measure design destroy"),
    ],
    "sentiment": [  # good or bad
        ("""The whole evening was [*].
            Our new hotel is [*].
            She found the concert [*].
            His last book was really [*].
            The food and the service were [*].""",
         """wonderful/terrible good/bad excellent/awful pleasant/unpleasant great/horrible lovely/dreadful
            fantastic/disgusting superb/poor delightful/nasty amazing/boring perfect/disastrous splendid/pathetic
            impressive/disappointing brilliant/stupid enjoyable/tedious exciting/dull"""),
        ("""The new manager was [*].
            My cousin always seemed [*] to me.
            Most people in this town are [*].
            She became [*] in her later years.
            They said the captain was [*].""",
         """kind/cruel friendly/hostile polite/rude honest/dishonest generous/greedy gentle/brutal happy/sad
            cheerful/gloomy grateful/bitter caring/selfish"""),
        ("""The critics [*] the play.
            Most people in town [*] the mayor.
            My aunt [*] the new teacher.
            The whole team [*] the plan.
            She [*] his way of singing.""",
         """loved/hated admired/despised liked/disliked praised/criticised adored/detested applauded/condemned
            appreciated/resented"""),
        ("""Her letter was full of [*].
            There was [*] in his voice.
            The news filled them with [*].
            She could not hide her [*].
            He remembered those days with [*].""",
         "joy/grief hope/despair love/hatred delight/anger pride/shame admiration/contempt pleasure/disgust"),
    ],
    "negation": [  # negated or not
        ("""The box was {not/still} [*] in the morning.
            This cupboard is {never/always} [*].
            Your basket is {not/now} [*].
            His trunk was {not/already} [*] at noon.
            The old barrel was {never/often} [*] in winter.""",
         "warm clean empty open dry heavy ready full dirty wet visible covered closed"),
        ("""The young teacher is {not/very} [*].
            My brother was {never/always} [*] as a child.
            The sailors were {not/all} [*] that night.
            She is {hardly/really} [*] today.
            The driver was {not/clearly} [*] after the trip.""",
         "happy tired hungry angry busy nervous quiet careful lonely proud sad cheerful sleepy"),
        ("""My friends {never/often} [*] in summer.
            The two brothers {don't/still} [*] together.
            We could {not/also} [*] there.
            {Nobody/Everybody} wanted to [*] after dinner.
            The tourists did {not/indeed} [*] that week.""",
         "sing dance travel swim work read cook"),
        ("""There is {no/some} [*] in the house.
            We left the shop {without/with} [*].
            They had {no/enough} [*] for the winter.
            She bought {no/more} [*] this week.
            There was {never/always} [*] on the table.""",
         "bread salt paper money wood oil coffee"),
    ],
    "size": [  # large or small
        ("""The [*] box stood in the hall.
            We could see the [*] statue from the road.
            The museum bought the [*] painting.
            Nobody wanted the [*] cake.
            The garden behind the house was [*].""",
         """big/small large/little huge/tiny gigantic/miniature enormous/minuscule massive/compact immense/minute
            giant/mini oversized/dainty"""),
        ("""The [*] pillar stood near the gate.
            They measured the [*] column twice.
            The [*] wall was painted white.
            In the yard there was only one [*] post.
            The mason repaired the [*] chimney.""",
         "tall/short wide/narrow thick/thin broad/slender"),
        ("""The [*] could be seen from the window.
            We stopped beside the [*] to rest.
            The painter loved the [*].
            A bird flew over the [*].
            The road ended at the [*].""",
         """mountain/hill ocean/pond city/village river/stream castle/hut mansion/cottage lake/puddle forest/bush
            cathedral/chapel boulder/pebble"""),
        ("""The [*] moved slowly through the picture.
            The children drew the [*] in class.
            A film about the [*] was shown at school.
            We watched the [*] for an hour.
            The [*] turned its head.""",
         """elephant/mouse whale/shrimp bear/squirrel eagle/sparrow shark/sardine crocodile/lizard giraffe/frog
            rhino/beetle"""),
        ("""He pointed to the [*] in the photograph.
            The [*] was hard to see.
            She asked me about the [*].
            They left the [*] behind.
            The [*] was covered with snow.""",
         """ship/boat truck/scooter wardrobe/drawer suitcase/purse sword/knife log/twig
            pumpkin/berry rope/thread cannon/pistol"""),
    ],
    "age": [  # old or young
        ("""The [*] doctor spoke to the crowd.
            They listened to the [*] officer.
            We asked the [*] lawyer for help.
            The [*] actor lived next door.
            Nobody knew the [*] painter.""",
         "old/young elderly/youthful senior/junior veteran/trainee"),
        ("""The museum shows the [*] furniture.
            She prefers the [*] building.
            The book describes the [*] method.
            He sold the [*] map.
            The [*] part of the town is quiet.""",
         "ancient/modern antique/contemporary traditional/trendy medieval/futuristic historic/new"),
        ("""The [*] sat by the fire.
            We saw the [*] at the station.
            Someone called the [*] by name.
            The [*] smiled at the photograph.
            They gave the chair to the [*].""",
         """grandfather/grandson grandmother/granddaughter father/son mother/daughter uncle/nephew aunt/niece
            king/prince queen/princess adult/child man/boy woman/girl pensioner/teenager elder/infant
            professor/pupil master/apprentice expert/beginner parent/baby"""),
        ("""The [*] rested in the grass.
            We found the [*] near the river.
            The boy drew the [*] in his notebook.
            A fox watched the [*] for a while.
            The [*] was not afraid of us.""",
         """dog/puppy cat/kitten cow/calf sheep/lamb horse/foal hen/chick bear/cub goat/kid pig/piglet
            duck/duckling deer/fawn goose/gosling frog/tadpole butterfly/caterpillar"""),
    ],
    "temperature": [  # hot or cold
        ("""The water in the tank was [*].
            The soup was [*] when it came.
            They waited in the [*] room.
            Her fingers touched the [*] metal.
            He breathed the [*] air.""",
         "hot/cold warm/cool boiling/freezing steaming/frozen burning/icy"),
        ("""We remember that [*] week.
            He visited us one [*] afternoon.
            The [*] weather lasted for a month.
            He photographed the [*] landscape.
            The [*] season was finally over.""",
         "sunny/snowy tropical/arctic"),
        ("""She [*] the soup before lunch.
            They [*] the milk for an hour.
            He [*] the water in a small pot.
            We [*] the fruit first.
            The cook [*] the sauce again.""",
         "warmed/cooled heated/chilled boiled/froze"),
        ("""They were married in [*].
            We never travel in [*].
            The house was built in [*].
            In [*] the village is quiet.
            She was born in [*].""",
         "July/January August/February June/December summer/winter"),
        ("""They spent the holiday in [*].
            My sister works in [*].
            The ship came from [*].
            We saw a film about [*].
            He has a friend in [*].""",
         """Egypt/Norway Kenya/Finland Brazil/Iceland Hawaii/Alaska Cairo/Oslo Dubai/Helsinki India/Sweden
            Cuba/Greenland Mexico/Siberia"""),
        ("""He wrote a poem about the [*].
            They talked about the [*] all day.
            The [*] was the first thing we saw.
            She took a picture of the [*].
            The guide told them about the [*].""",
         """desert/glacier volcano/iceberg jungle/blizzard fire/ice lava/snow sunshine/frost heat/chill steam/hail
            flame/snowflake"""),
        ("""The [*] was in the next room.
            We moved the [*] yesterday.
            Someone had cleaned the [*].
            The [*] was made in Italy.
            She paid too much for the [*].""",
         "oven/freezer stove/fridge furnace/refrigerator heater/cooler fireplace/icebox"),
        ("""She packed her [*] in the suitcase.
            I could not find my [*].
            He bought the [*] in a small shop.
            The [*] were left on the bench.
            They wore [*] on the first day.""",
         "sandals/mittens shorts/gloves bikinis/sweaters"),
    ],
    "direction": [  # up or down
        ("""Prices [*] in the spring.
            The number of visitors [*] last year.
            Sales [*] after the report.
            The company's profits [*] again.
            The value of the house [*] over time.""",
         "rose/fell climbed/dropped increased/decreased grew/shrank soared/plunged surged/slumped jumped/sank"),
        ("""The bank [*] the rate.
            They [*] the price of bread.
            The council [*] the tax.
            The new director [*] our wages.
            The government [*] the limit.""",
         "raised/lowered boosted/reduced lifted/cut hiked/slashed"),
        ("""The report explains the [*].
            Nobody expected the [*].
            The [*] was hardly mentioned.
            The newspaper wrote about the [*].
            We were surprised by the [*].""",
         "growth/decline gain/loss upturn/downturn boom/crash ascent/descent"),
        ("""The boy looked [*].
            They slowly walked [*].
            She turned and went [*].
            We heard steps going [*].
            He carried the bag [*].""",
         "up/down upward/downward upstairs/downstairs uphill/downhill upstream/downstream"),
        ("""She put the book on the [*] shelf.
            The cat sat on the [*] branch.
            They painted the [*] row of windows.
            He opened the [*] drawer.
            We live on the [*] floor.""",
         "high/low upper/lower top/bottom"),
        ("""A small flag was fixed [*] the window.
            The picture [*] the shelf is new.
            The room [*] the kitchen is empty.
            There is a wire [*] the floor.
            They built a nest [*] the platform.""",
         "above/below over/under atop/beneath"),
        ("""He pointed at the [*].
            The light came from the [*].
            We could not see the [*] in the dark.
            A strange sound came from the [*].
            She looked at the [*] for a long time.""",
         """roof/floor attic/cellar sky/ground ceiling/carpet loft/basement mountain/valley summit/gorge
            heaven/hell tower/tunnel cloud/puddle branch/root chimney/drain airplane/submarine"""),
    ],
    "certainty": [  # certain or doubtful
        ("""The bridge is {definitely/maybe} [*].
            This painting is {certainly/perhaps} [*].
            The tower is {clearly/maybe} [*].
            The old house was {definitely/perhaps} [*].
            The machine is {certainly/maybe} [*].""",
         """safe old valuable famous expensive dangerous important unique damaged new unfinished beautiful
            big"""),
        ("""Her neighbour is {certainly/maybe} [*].
            The stranger was {definitely/perhaps} [*].
            Everyone said he was {clearly/perhaps} [*].
            The driver was {clearly/maybe} [*].
            My cousin is {definitely/perhaps} [*].""",
         "guilty innocent rich poor angry ill happy honest drunk married tired jealous hungry"),
        ("""The guests will {definitely/maybe} [*] tomorrow.
            The children will {certainly/perhaps} [*] this time.
            Our neighbours will {surely/maybe} [*] after all.
            He will {certainly/maybe} [*] in the end.
            They will {definitely/perhaps} [*] today.""",
         "arrive return leave win stay come help agree pay lose call move wait fail"),
    ],
}  # fmt: skip

ONE_SIDED = {
    "music": [
        ("""The [*] stood by the door.
            She bought the [*] from a neighbour.
            He forgot the [*] in the car.
            The [*] was a gift from my aunt.
            They found the [*] in the attic.""",
         """violin/ladder piano/bucket guitar/lamp drum/basket trumpet/kettle flute/shovel cello/mirror harp/pillow
            banjo/bicycle accordion/suitcase saxophone/hammer clarinet/umbrella tuba/carpet fiddle/candle"""),
        ("""The [*] lived next to the station.
            We met the [*] in the park.
            The young [*] smiled at us.
            A letter came for the [*].
            My cousin married a [*].""",
         """singer/farmer pianist/lawyer drummer/nurse composer/baker violinist/plumber guitarist/pilot
            musician/soldier bassist/tailor"""),
        ("""Everybody talked about the [*].
            He still remembers the [*].
            The [*] was a great surprise.
            She wrote to me about the [*].
            The newspaper praised the [*].""",
         """concert/election opera/bridge symphony/lecture song/wedding melody/harvest ballad/treaty waltz/journey
            tune/garden anthem/sermon hymn/match chorus/museum duet/library"""),
        ("""My uncle talks about [*] every day.
            She wrote a book about [*].
            They never liked [*].
            He learned a lot about [*] at school.
            Nothing is as interesting as [*].""",
         "jazz/chess reggae/football music/geography harmony/algebra rhythm/fashion punk/gardening"),
    ],
    "food": [
        ("""The [*] was on the table.
            She put the [*] in the bag.
            He asked for the [*].
            I paid for the [*] myself.
            They forgot the [*] at home.""",
         """apple/book potato/ticket onion/key tomato/hammer sandwich/shirt cookie/wallet banana/ring carrot/notebook
            sausage/candle pancake/bottle lemon/phone pizza/pencil cake/umbrella pie/ball muffin/map peach/towel
            pear/stamp egg/camera omelette/blanket burger/letter"""),
        ("""There was [*] on the floor.
            She bought some [*] at the market.
            We need more [*] by Friday.
            He paid too much for the [*].
            The price of [*] went up again.""",
         """bread/paper cheese/soap soup/sand butter/paint rice/coal honey/wool chocolate/petrol salad/clay pasta/ink
            jam/glue bacon/rope ham/cotton cream/gravel flour/timber sugar/leather pepper/cement stew/wax
            yogurt/medicine beef/fabric gravy/glass"""),
    ],
    "animals": [
        ("""We saw the [*] from the window.
            The [*] came out of the fog.
            The [*] disappeared behind the hill.
            A child waved at the [*].
            Nobody heard the [*] in the night.""",
         """dog/soldier cat/train horse/cyclist fox/boat wolf/postman bear/tractor rabbit/balloon deer/priest
            sheep/truck goat/plane pig/teacher cow/bus donkey/nurse eagle/kite owl/helicopter goose/runner
            duck/tourist swan/carriage crow/thief squirrel/ambulance"""),
        ("""The [*] was in the photograph.
            He told us a story about the [*].
            She dreamt about the [*].
            The [*] is on the cover of the book.
            They painted the [*] on the wall.""",
         """lion/castle tiger/volcano elephant/rose camel/bridge monkey/doctor snake/church badger/clock
            otter/lighthouse beaver/mountain hedgehog/moon leopard/judge zebra/forest kangaroo/rocket turtle/chair
            crocodile/temple whale/tower dolphin/king seal/tree parrot/bottle lizard/windmill"""),
    ],
    "cities": [
        ("""She often talked about [*].
            They wrote a long book about [*].
            He dreamed of [*] last night.
            We will never forget [*].
            Everyone at school had heard of [*].""",
         """London/Shakespeare Paris/football Berlin/winter Rome/Christmas Madrid/chess Tokyo/poetry Moscow/Napoleon
            Vienna/friendship Boston/Einstein Chicago/gardening Dublin/democracy Athens/Beethoven Cairo/childhood
            Delhi/astronomy Sydney/money Toronto/Dickens Lisbon/justice Prague/baseball Warsaw/Darwin Oslo/marriage"""),
        ("""The poster told us more about [*].
            My thoughts returned to [*].
            The film was about [*].
            The class learned about [*] in May.
            Nothing could replace [*] for him.""",
         """Amsterdam/Picasso Brussels/silence Budapest/Easter Istanbul/physics Mumbai/cricket Shanghai/Gandhi
            Beijing/summer Seoul/freedom Houston/Newton Dallas/algebra Seattle/Mozart Denver/hockey
            Montreal/loneliness Melbourne/Aristotle Glasgow/religion Edinburgh/Columbus Manchester/tennis
            Liverpool/Homer Munich/snow Hamburg/philosophy"""),
    ],
}  # fmt: skip


def fill(frame, sides, side):
    """The sentence of one side (0 positive, 1 negative) of a frame: its word in brackets."""
    before, open_brace, rest = frame.partition("{")
    if open_brace:
        alternatives, _, after = rest.partition("}")
        frame = before + alternatives.split("/")[side] + after
    return frame.replace("*", sides[side])


def rows():
    """The lines of the text file, one a pair: concept, sides, word, part, positive, negative."""
    for sides, concepts in (("two", TWO_SIDED), ("one", ONE_SIDED)):
        for concept, groups in concepts.items():
            random = np.random.RandomState(SEED)  # whose stream NumPy promises never to change
            for frames, words in groups:
                frames, words = [line.strip() for line in frames.split("\n")], words.split()
                held_out = set(random.permutation(len(words))[: round(len(words) / 3)])
                for i, word in enumerate(words):
                    part = "held-out" if i in held_out else "train"
                    pair = word.split("/") if "/" in word else (word, word)
                    for frame in frames:
                        yield concept, sides, word, part, fill(frame, pair, 0), fill(frame, pair, 1)


def state(sentence, tokenizer, model):
    """The state (384,) of the marked word, at its last subword token, float64."""
    before, _, rest = sentence.partition("[")
    word, _, after = rest.partition("]")
    encoding = tokenizer.encode(before + word + after)  # with [CLS] and [SEP]
    end = len(before) + len(word)
    (place,) = [i for i, (start, stop) in enumerate(encoding.offsets) if start < stop == end]
    with torch.no_grad():
        out = model(torch.tensor([encoding.ids]), output_hidden_states=True)
    return out.hidden_states[LAYER][0, place].numpy()


def build():
    """The bytes of the two files."""
    tokenizer, model = load()
    lines = [("concept", "sides", "word", "part", "positive", "negative"), *rows()]
    states = [[state(s, tokenizer, model) for s in line[-2:]] for line in tqdm(lines[1:])]
    buffer = io.BytesIO()
    np.save(buffer, np.array(states).astype("<f2"))
    text = "".join("\t".join(line) + "\n" for line in lines)
    return {TEXT: text.encode(), STATES: buffer.getvalue()}


if __name__ == "__main__":
    write_or_check(build, "Rebuild or check the packaged contrast pairs.")
