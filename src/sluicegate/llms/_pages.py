"""The pages that the stand-in model has read: a few pages of prose, written for it."""

from __future__ import annotations


PAGES = """\
The harbour woke before the town did. While the shutters were still closed along the quay, the pilots were already \
walking down to the steps with their lanterns, and the gulls had taken their places on the bollards as if they were \
paid to sit there. The tide had turned an hour ago. It ran out between the piers with the quiet haste of a servant \
who has been told to leave by the back door, and it took with it straw, cork, apple peel and the reflection of the \
last stars.

The old captain stood at the rail and said nothing. He had said everything he knew about the weather forty years \
ago, and the weather had not listened. His ship was called the Patience, and she deserved the name. She had been \
built for timber, had carried coal, had once carried a church bell that rang by itself in every swell, and now she \
lay deep in the water with a cargo of pipes, valves and iron gates for a valley that none of her crew had ever seen.

"What do they want with so much iron?" asked the boy who had come aboard in the night. The mate looked at him for a \
while before he answered. "They want to catch a river," he said, "and lead it down a mountain in a tube, and let it \
out at the bottom where it can do some work. The tube is called a sluicegate. It is the same trade as ours. We also \
live from water that would rather be somewhere else."

The wind came from the land and smelled of wet slate. The sails filled one after the other, slowly at first, then \
with a sound like a great door. The boy held on to a rope that did not need to be held. Behind them the town grew \
small, the lighthouse put out its lamp, and the sea opened in front of the bow as a book opens in the hands of \
somebody who has read it many times and still wants to know how it ends.

Nobody owns the sea, but everybody who has crossed it believes that a small part of it has his name on it. The \
captain believed this of a stretch of grey water west of the islands, where he had once waited nine days for a wind. \
The mate believed it of a bay in the south, where the anchor had come up with a crown of red weed and a bottle with \
no letter in it. The cook believed it of the galley, where the sea came in every winter and never wiped its feet.

On the third day they met a whale. It rose beside the ship without any hurry, as a hill would rise if hills had \
learned to breathe, and it looked at them with one small eye that seemed to belong to a much younger animal. The boy \
had been told that whales were monsters. He had not been told that they were polite. It kept company with the ship \
until evening, always at the same distance, and when it dived it left behind a smooth round place in the waves on \
which nothing moved for a long time.

A ship is a conversation between wood and water, and the crew is there to keep it friendly. There is always \
something to be mended. A rope wears where it rubs, a plank opens where it dries, and a man grows silent where \
nobody speaks to him. The captain knew a remedy for each of the three. For the rope he had leather, for the plank he \
had tar, and for the man he had the night watch, in which everybody talks sooner or later, because the stars do not \
repeat what they hear.

They came to the mouth of the river in a fog so thick that the bowsprit was a rumour. The lead was thrown and \
called, thrown and called, and the voice that called it grew smaller as if it walked away from them over the water. \
Then a bell answered from the shore, then a second one, and between the two bells they found the channel, as one \
finds the way between two opinions, by keeping an equal distance from both.

The river was brown and slow and had no wish to be hurried. It turned to the left in order to look at a village, and \
to the right in order to look at it again. Barges came down with hay and bricks and children. A woman on one of them \
was hanging up shirts, and the shirts pointed upstream, so that even the laundry seemed to know where the wind would \
be needed. The captain took in the sails and hired two horses. It is a strange thing to see a ship that has rounded \
the cape go up a river behind two horses, but the horses did not find it strange.

After the second town the river was too steep for ships, and the canal began. A canal is a river that has been to \
school. It goes straight, it keeps its level, and where it has to climb it waits politely in front of a gate until \
somebody lets it in. The locks lay one above the other like the steps of a stair for giants. At every step the gates \
closed behind the ship, the sluices were opened, and the water came in from below with a growl and lifted the \
Patience as easily as a mother lifts a child that has fallen asleep at the table.

The keeper of the locks had lived there all her life. She kept a book in which she wrote the name of every vessel, \
the hour, the level of the water above and the level of the water below. "People think that the gate holds the \
water," she said to the boy. "The gate holds nothing. The water holds the gate. It presses the two wings together, \
and the more there is of it, the tighter they close. You need not be stronger than the water. You need only give it \
something useful to lean on."

The boy thought about this while the horses were changed. He thought about it at the next lock, and at the one \
after it, and he began to count how long each chamber took to fill. The keeper at the summit told him the rule. A \
chamber fills as fast as its sluice is wide, and the ships behind must wait as long as the ship in front. If the \
ships below arrive faster than the chamber can lift them, one must tell them early, or there will be a crowd at the \
bottom and shouting and broken oars. "So I hang out a red lamp," she said, "and the lock below sees my lamp and \
hangs out its own, and in a quarter of an hour the whole valley knows that it has time for a cup of tea."

At the summit there was a lake, and out of the lake came the river that was to be caught. It did not look like a \
prisoner. It fell over the edge of the valley in a long white scarf, and the noise of it lay over everything, so \
that the engineers had learned to talk with their hands. They were glad about the iron. They carried the pipes on \
sledges, laid them down the slope in a straight line, and joined them with rings and bolts and red lead, and every \
evening they knocked on the last one with a hammer and listened, as a doctor listens to a chest.

The engine house stood at the bottom, with its door open to the stream. The wheel inside was not large. It had a \
ring of bright buckets, each with a sharp ridge in the middle, so that the water would be parted in two and turned \
back without a splash. The oldest of the engineers put her palm on the casing. "The whole mountain is going to push \
on this," she said. "Two hundred metres of water, standing in a tube, and it will want to come out all at once. The \
wheel is the easy part. The gate at the top is the difficult part, because it must always be possible to close it."

"Why should one want to close it?" asked the boy. He had come to see the water run. The engineer was not offended by \
the question. "Because one day a bearing will break, or a belt will jump, or somebody will fall into the tail race, \
and then everything that is on its way must stop, and nothing more may come. A river that cannot be stopped is not \
an engine. It is weather. But one must not slam the gate either. A column of water that is stopped in an instant \
strikes like a hammer and bursts the pipe at its weakest ring. So the gate closes quickly and evenly, and the pipe \
has a standing tower in which the water may rise and swing and calm down, and then it is quiet everywhere, in the \
right order, from the top to the bottom."

They opened it in the first week of autumn. The water was let into the pipe slowly, a hand's breadth at a time, and \
the air went out before it with a long sigh through the valve on the bend. Far below, the needle of the gauge began \
to move. Nobody spoke. The wheel trembled, then it turned, then the single buckets could no longer be seen, and a \
lamp over the door became red, then yellow, then so white that the boy had to look away. In the village somebody \
began to sing, and somebody else told him to stop, because one could not hear the lamp.

The captain watched all this with his hat in his hand. He had carried many things over the sea, and most of them had \
been eaten, burned or worn by the time he came again. "It is a good cargo that goes on moving after you have put it \
down," he said. The mate agreed. They stayed for three days, took in wool and cheese and a grindstone, and the \
engineers gave the boy a small brass valve that had been made too short, and he kept it in his pocket for the rest \
of his life.

Going down was quicker. The locks let them fall one step after the other, and at every step the keeper wrote the \
name of the ship into the book and drew a line under it, since what has gone up and has come down again is finished \
and need not be remembered. In the lowest chamber the gates opened upon the river, and the river took them round its \
bends, past the bricks and the shirts, and down to the bells. The fog was gone. The sea lay in the light like a \
sheet of hammered tin, and far out, west of the islands, a smooth round place shone among the waves.

That winter the boy learned to keep the log. He wrote down the wind, the course and the distance, and when nothing \
happened he wrote that nothing had happened, because the captain said that this was the most valuable entry of all. \
A log does not say what the sea is like. It says what was done, in which order, and when it was over. Whoever reads \
it later can find the place where the mistake was made, and the place where somebody noticed, and how many hours lay \
between the two. "If those are many," said the captain, "then it was not the sea that sank the ship."

In spring the ice went out of the harbour with a noise like a market. Masts were stepped, seams were paid with \
pitch, and the whole quay smelled of tar and of oranges. The Patience was given a new bowsprit and an old figurehead \
that had belonged to a ship without luck. Nobody minded. The luck of a ship, said the mate, is not in the wood in \
front of her. It is in the pumps, and in the hands at the pumps, and in the habit of looking into the well every \
hour, also on the days on which the sun shines and the deck is dry.

And when the boy was a pilot himself, and walked down to the steps in the morning with his lantern, he would \
sometimes stop on the quay and listen. From the valley, on a still day, one could hear the wheel. It was not much \
more than a humming in the stones. The gulls sat on the bollards, the tide ran out between the piers, and somewhere \
far above, behind the hills, a gate stood open as wide as was needed and no wider, and could be closed at any time.
"""
