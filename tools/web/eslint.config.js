// Rules for the browser's modules: types are tsc's business, mistakes and leftovers are eslint's.

export default [
  {
    files: ['**/*.js'],
    languageOptions: { ecmaVersion: 2022, sourceType: 'module' },
    linterOptions: { reportUnusedDisableDirectives: true },
    rules: {
      'array-callback-return': 'error',
      'consistent-return': 'error',
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'no-alert': 'error',
      'no-console': 'error',
      'no-debugger': 'error',
      'no-duplicate-imports': 'error',
      'no-eval': 'error',
      'no-extend-native': 'error',
      'no-implied-eval': 'error',
      'no-restricted-properties': [
        'error',
        { property: 'prototype', message: "Use the frontend's hooks; its prototypes are not ours to change." }
      ],
      'no-restricted-syntax': [
        'error',
        { selector: 'ImportExpression', message: 'Import at the top: what a page loads must be seen.' },
        { selector: "AssignmentExpression[left.property.name='innerHTML']", message: "Set textContent: texts are the user's." }
      ],
      'no-self-compare': 'error',
      'no-shadow': 'error',
      'no-unused-expressions': 'error',
      'no-unused-vars': 'error',
      'no-use-before-define': ['error', { functions: false, variables: false }],
      'no-var': 'error',
      'object-shorthand': 'error',
      'prefer-const': 'error'
    }
  }
]
