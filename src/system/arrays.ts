/** Element `index` of an array. @throws RangeError when there is none, which is a mistake in this program */
export function elementAt<T>(values: ArrayLike<T>, index: number): T {
  const value = values[index];
  if (value === undefined) throw new RangeError(`there is no element ${index} in an array of ${values.length}`);
  return value;
}

/** How many elements two sequences share at their beginning. */
export function sharedPrefixLength(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const limit = Math.min(a.length, b.length);
  let length = 0;
  while (length < limit && a[length] === b[length]) length++;
  return length;
}
